"""In what order the layers of the segments of a text run: one segment after the other, or diagonal by diagonal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError
from ..segments import Segment, num_folded
from ..state import MemoryState

if TYPE_CHECKING:
    from ..reading import ReadsInSegments
    from .diagonal import Diagonals

AUTO = "auto"
SCHEDULES = (AUTO, "sequential", "diagonal")
_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


class _Known:
    """What is known of a model: its stacks, and how fast it was.

    Args:
        diagonals: The model's layers in stacks.
    """

    def __init__(self, diagonals: Diagonals) -> None:
        self.diagonals = diagonals
        self.seconds: dict[tuple[int, int, bool], tuple[float, float]] = {}


class Folding:
    """The full segments of a text, being folded on diagonals.

    Args:
        model: The model.
        steps: See `Diagonals.fold`.
    """

    def __init__(
        self,
        model: ReadsInSegments,
        steps: Generator[tuple[Tensor, Callable[[], dict[str, Tensor]]], None, dict[str, Tensor]],
    ) -> None:
        self._steps = steps
        self._width, self._dtype = model.view.embedding_width, model.dtype

    def tensors_at_end(self) -> dict[str, Tensor]:
        """The memory after the last of them."""
        while True:
            try:
                next(self._steps)
            except StopIteration as end:
                return end.value

    def fold_segment(self, segment: Segment, state: MemoryState) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """As `ReadsInSegments.fold_segment`, for each segment in turn, and once more where no row has one.

        The memory of the state that is returned is right in the rows that have no segment.
        """
        active = segment.lengths > 0
        if not bool(active.any()):
            tensors = self.tensors_at_end()
            nothing = segment.input_ids.new_zeros(*segment.input_ids.shape, self._width, dtype=self._dtype)
            return nothing, replace(state, tensors=tensors)
        hidden, tensors_now = next(self._steps)
        if bool(active.all()):
            return hidden, state.folded(state.tensors, active)
        return hidden * active[:, None, None], state.folded(tensors_now(), active)


def folding(
    model: ReadsInSegments, text: Segment, state: MemoryState, schedule: str, *, with_hidden: bool = False
) -> Folding | None:
    """The full segments of a text that another token follows, on diagonals; None: one after the other.

    Args:
        model: The model.
        text: Whole rows.
        state: The memory before them.
        schedule: See `diagonals_for`.
        with_hidden: Whether the hidden states are wanted.
    """
    length = model.memory_config.segment_length
    folds = num_folded(text.lengths, length)
    first, last = (int(folds.min()), int(folds.max())) if folds.numel() else (0, 0)
    diagonals = diagonals_for(model, schedule, len(folds), last, state.tensors)
    if diagonals is None:
        return None
    segments = (
        (
            Segment.full(text.input_ids[:, index * length : (index + 1) * length]),
            index < folds if index >= first else None,
        )
        for index in range(last)
    )
    return Folding(model, diagonals.fold(segments, state.tensors, with_hidden=with_hidden))


def checked_schedule(schedule: str) -> str:
    """The name, if it is one.

    Raises:
        ConfigError: if there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule={schedule!r} is not a schedule; choose one of {', '.join(SCHEDULES)}")
    return schedule


@torch.no_grad()
def chosen_schedule(model: ReadsInSegments, schedule: str, num_segments: int) -> str:
    """`sequential` or `diagonal`: how one text is read, so many segments at a time.

    Raises:
        ConfigError: see `diagonals_for`.
    """
    diagonals = diagonals_for(model, schedule, 1, num_segments, model.memory.initial(1))
    return "sequential" if diagonals is None else "diagonal"


def diagonals_for(
    model: ReadsInSegments, schedule: str, batch_size: int, num_segments: int, tensors: dict[str, Tensor]
) -> Diagonals | None:
    """What runs the diagonals of a model, or None where its segments are to be read one after the other.

    Args:
        model: The model.
        schedule: `sequential`; `diagonal`; `auto`, the faster one. What is faster is measured once for a model on its
            device, a batch size, and whether there are gradients, and is kept as long as the model.
        batch_size: B.
        num_segments: N, segments that are to be folded.
        tensors: The memory before them.

    Raises:
        ConfigError: if there is no such schedule, or `diagonal` cannot be done with this memory and these layers.
    """
    if checked_schedule(schedule) == "sequential":
        return None
    try:
        known = _known(model)
    except ConfigError:
        if schedule == "diagonal":
            raise
        return None
    if schedule == "diagonal":
        return known.diagonals
    num_layers = len(model.view.layers())
    key = (batch_size, model.memory_config.segment_length, torch.is_grad_enabled())
    if num_segments < 2:
        return None
    if key not in known.seconds:
        known.seconds[key] = _measure(model, known.diagonals, batch_size, tensors)
    per_segment, per_diagonal = known.seconds[key]
    is_faster = (num_segments + num_layers - 1) * per_diagonal < num_segments * per_segment
    return known.diagonals if is_faster else None


def _known(model: ReadsInSegments) -> _Known:
    from .diagonal import Diagonals, check_possible

    check_possible(model.view, model.memory)
    known = _KNOWN.get(model)
    if known is None or not known.diagonals.is_current():
        _KNOWN.pop(model, None)  # old stacks go before there are new ones
        known = _KNOWN[model] = _Known(Diagonals(model.view, model.memory))
    return known


def _measure(
    model: ReadsInSegments, diagonals: Diagonals, batch_size: int, tensors: dict[str, Tensor]
) -> tuple[float, float]:
    """Seconds for a segment, and for a diagonal with all its layers: the best of three, taken in turns."""
    view, memory, config = model.view, model.memory, model.memory_config
    device = view.embedding.weight.device
    ids = torch.zeros(batch_size, config.segment_length, dtype=torch.long, device=device)
    segment = Segment.full(ids)
    best = [float("inf"), float("inf")]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for _ in range(3):
            for which, run in enumerate(
                (lambda: memory.fold(view, segment, tensors), lambda: diagonals.one_full(segment, tensors))
            ):
                best[which] = min(best[which], _seconds(run, device))
    return best[0], best[1]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
