"""The folding of a full segment recorded once, as a CUDA graph, and replayed for every one that follows.

A segment of a small model is hundreds of short kernels, and a GPU waits for each to be launched from Python. Every full segment of a
text launches the same ones on tensors of the same shapes, so they can be recorded and launched together: ids and memories then
stand in buffers that stay where they are, and what is written goes back into the buffer that the next segment reads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import masking_utils

from ..segments import Segment

if TYPE_CHECKING:
    from ..reading import ReadsInSegments

_WARM_UPS = 3
_KEPT = 4


class RecordedFolding:
    """Folds full segments of as many rows each.

    Args:
        model: The model.
        tensors: A memory, `[B, …]`; its shapes and dtypes are what is recorded.
    """

    def __init__(self, model: ReadsInSegments, tensors: dict[str, Tensor]) -> None:
        batch, length = next(iter(tensors.values())).shape[0], model.memory_config.segment_length
        device = model.view.embedding.weight.device
        self._ids = torch.zeros(batch, length, dtype=torch.long, device=device)
        self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        lengths = torch.full((batch,), length, dtype=torch.long, device=device)
        segment, view = Segment(self._ids, lengths, is_full=True), model.view

        def fold() -> None:
            for name, new in model.memory.write(view, segment, self._tensors).items():
                self._tensors[name].copy_(new)

        with rows_are_not_packed():
            self._replay = record(fold)

    def run(self, input_ids: Int[Tensor, "B T"], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The memory after whole segments.

        Args:
            input_ids: `[B, n·S]`.
            tensors: The memory before them.
        """
        for name, tensor in tensors.items():
            self._tensors[name].copy_(tensor)
        for ids in input_ids.split(self._ids.shape[1], 1):
            self._ids.copy_(ids)
            self._replay()
        return {name: tensor.clone() for name, tensor in self._tensors.items()}


class Recordings:
    """What was recorded of a model: of the last few shapes, for as long as its weights are where they were."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], RecordedFolding] = {}

    def __deepcopy__(self, memo: object) -> Recordings:
        return Recordings()

    def __reduce__(self) -> tuple[type[Recordings], tuple[()]]:
        return Recordings, ()

    def of(self, model: ReadsInSegments, tensors: dict[str, Tensor]) -> RecordedFolding:
        """That of memories like these; recorded now, if it was not."""
        weights = tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
        key = (weights, *((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()))
        if key not in self._known:
            self._known = {old: kept for old, kept in self._known.items() if old[0] == weights}
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = RecordedFolding(model, tensors)
        return self._known[key]


@contextmanager
def rows_are_not_packed() -> Generator[None]:
    """While this lasts, transformers takes every row for one text.

    It would look at the positions of each row, which are on the GPU, whether several texts are packed in it. In ours there never
    are, and while kernels are recorded nobody can look.
    """
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def record(run: Callable[[], None]) -> Callable[[], None]:
    """What replays a function's kernels, after a few runs in which whatever is made once is made.

    Args:
        run: It must not look at what is on the GPU, and change nothing but buffers that stay where they are.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
