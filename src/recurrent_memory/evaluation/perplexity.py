"""How well a model predicts texts: every token once, given all of its document before it, in constant memory.

Documents stand in lanes side by side. A lane goes through its document row by row (a segment, or a window), and where it
ends, the next document takes the lane, from the initial state. The last position of a row predicts the token after it.
Logits are made for a few positions at a time, so that those of a row are never whole in memory.

What a token is predicted from has two coordinates, and they are those of the position that predicts it: `position`, its
place in its row, from 0; and `history`, the number of rows before that row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ..backbones.base import Backbone
from ..errors import BackboneError, ConfigError, SourceChangedError
from ..forward import IGNORE, read_segment
from ..head_loss import at_least_float32, positions_at_a_time
from ..inference.row_threads import CPU_POSITIONS
from ..inference.token_feed import TokenFeed
from ..segments import Segment, check_ids
from ..state import MemoryState
from .continuations import check_writes_text
from .perplexity_plan import Planned

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

_GPU_POSITIONS = 2**16


class TextReading(ABC):
    """A way for a model to go through texts. Holds what it remembers of the documents in the lanes.

    Args:
        model: The Hugging Face model, to be put into evaluation mode.
        view: The backbone, whose head predicts.
        width: Text tokens of a row.
        stride: Tokens by which a row moves on from the one before; what it repeats is context only.
    """

    def __init__(self, model: Any, view: Backbone, width: int, stride: int) -> None:
        self.model, self.view, self.width, self.stride = model, view, width, stride

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the result, for the record."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """What is kept of a text between its rows, in bytes."""

    @abstractmethod
    def join(self, count: int) -> None:
        """More documents, in lanes after those that are there."""

    @abstractmethod
    def keep(self, lanes: list[int]) -> None:
        """Only these lanes go on, in this order."""

    @abstractmethod
    def read(self, rows: Segment, going_on: Bool[Tensor, " B"], asked: Bool[Tensor, " B"]) -> Float[Tensor, "B T D"]:
        """Read a row of every lane.

        Args:
            rows: The text.
            going_on: Whether the document goes on after the row.
            asked: Whether something in the row predicts a token.

        Returns:
            The last hidden states; whatever, where nothing is asked.
        """

    def coordinates(self, predictors: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Position and history, see the module, of the places in a document that predict."""
        rows = np.maximum(0, predictors - (self.width - self.stride)) // self.stride
        return predictors - rows * self.stride, rows

    def batches(self, num_rows: int) -> Iterator[slice]:
        """Rows that are computed at a time."""
        positions = CPU_POSITIONS if self.view.embedding.weight.device.type == "cpu" else _GPU_POSITIONS
        size = max(1, positions // self.width)
        return (slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size))


class MemoryReading(TextReading):
    """A recurrent memory reads segment by segment.

    Args:
        model: A decoder with a memory.
        reset: Whether every segment is read from the initial state: the same tokens from the same text, without what the
            memory held.

    Raises:
        GenerationError: if the model does not continue texts.
    """

    def __init__(self, model: RecurrentMemoryModel, *, reset: bool = False) -> None:
        check_writes_text(model)
        length = model.memory_config.segment_length
        super().__init__(model, model.view, length, length)
        self.reset = reset
        self._state: MemoryState | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """See `TextReading.settings`."""
        memory = self.model.memory_config.to_dict()
        return {"reading": "reset" if self.reset else "memory", "model": self.model.fingerprint, "memory": memory}

    @property
    def state_bytes(self) -> int:
        """See `TextReading.state_bytes`."""
        return 0 if self.reset else memory_bytes(self.model)

    def join(self, count: int) -> None:
        """See `TextReading.join`."""
        fresh = self.model.initial_state(count)
        self._state = fresh if self._state is None else MemoryState.cat([self._state, fresh])

    def keep(self, lanes: list[int]) -> None:
        """See `TextReading.keep`."""
        self._state = self._known_state().index(lanes) if lanes else None

    def read(self, rows: Segment, going_on: Tensor, asked: Tensor) -> Tensor:
        """See `TextReading.read`."""
        state = self._known_state()
        hidden: list[Tensor] = []
        after: list[MemoryState] = []
        for part in self.batches(len(rows.lengths)):
            segment = Segment(rows.input_ids[part], rows.lengths[part])
            folding = going_on[part] & (not self.reset)
            here, kept = read_segment(self.model, segment, folding, asked[part], state.index(part))
            hidden.append(here)
            after.append(kept)
        self._state = MemoryState.cat(after).detach()
        return torch.cat(hidden)

    def _known_state(self) -> MemoryState:
        assert self._state is not None, "a lane is active"
        return self._state


def memory_bytes(model: RecurrentMemoryModel) -> int:
    """The size of the memory of one text; 0 for a model without one, whose state only counts tokens."""
    return model.initial_state(1).num_bytes if model.memory_config.num_memory_tokens else 0


@dataclass(frozen=True, slots=True)
class Scored:
    """Some tokens of a document, consecutive.

    Args:
        document: Where they are.
        nll: The negative logarithm of the probability of each, natural.
        num_read: Tokens that the model read for them.
        is_last: Whether the document ends with them.
    """

    document: Planned
    nll: Float[np.ndarray, " N"]
    num_read: int
    is_last: bool


@dataclass(slots=True)
class _Lane:
    """A document on its way: the tokens of its row, and the one after it if there is one."""

    document: Planned
    feed: TokenFeed
    start: int = 0
    held: Int[Tensor, " T"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def take(self, width: int, stride: int, vocab_size: int) -> None:
        """Move on to the first row, or to the next one."""
        wanted = width + 1
        if len(self.held):
            self.start += stride
            self.held, wanted = self.held[stride:], stride
        missing = min(wanted, self.document.num_tokens - self.start - len(self.held))
        new = self.feed.take(missing)
        if len(new) < missing:
            raise SourceChangedError(
                f"{self.document.name}: ended before its {self.document.num_tokens:,} tokens; did it change meanwhile?"
            )
        self.held = torch.cat([self.held, check_ids(new, vocab_size)[0]])


class Scoring:
    """Scores documents in lanes.

    Args:
        reading: How the model reads.
        feeds: The documents and their tokens; taken when a lane is free.
        lanes: How many at a time. The result does not depend on it.
        logits_at_a_time: Numbers; None: what suits the device.

    Raises:
        ConfigError: if `lanes` is below 1.
    """

    def __init__(
        self,
        reading: TextReading,
        feeds: Iterator[tuple[Planned, TokenFeed]],
        lanes: int,
        logits_at_a_time: int | None = None,
    ) -> None:
        if lanes < 1:
            raise ConfigError(f"lanes={lanes} must be at least 1")
        self._reading, self._feeds, self._num_lanes = reading, feeds, lanes
        self._lanes: list[_Lane] = []
        self._device = reading.view.embedding.weight.device
        self._positions_at_a_time = positions_at_a_time(reading.view, logits_at_a_time)

    def run(self) -> Iterator[Scored]:
        """The scores, document by document where there is one lane; else the documents are mixed, each in order."""
        while self._fill():
            yield from self._step()
            going_on = [place for place, lane in enumerate(self._lanes) if len(lane.held) > self._reading.width]
            if len(going_on) < len(self._lanes):
                self._lanes = [self._lanes[place] for place in going_on]
                self._reading.keep(going_on)

    def _fill(self) -> bool:
        """Give free lanes their documents; whether there is one."""
        free = self._num_lanes - len(self._lanes)
        new = [_Lane(document, feed) for _, (document, feed) in zip(range(free), self._feeds, strict=False)]
        if new:
            self._lanes += new
            self._reading.join(len(new))
        return bool(self._lanes)

    @torch.no_grad()
    def _step(self) -> list[Scored]:
        """Read a row of every lane."""
        width, stride = self._reading.width, self._reading.stride
        targets: list[Tensor] = []
        for lane in self._lanes:
            lane.take(width, stride, self._reading.view.vocab_size)
            wanted = lane.held[1 : width + 1].clone()
            if lane.start:
                wanted[: width - stride] = IGNORE
            targets.append(wanted)
        lengths = torch.tensor([min(width, len(lane.held)) for lane in self._lanes])
        going_on = torch.tensor([len(lane.held) > width for lane in self._lanes])
        ids = pad_sequence([lane.held[:width] for lane in self._lanes], batch_first=True)
        target = pad_sequence(targets, batch_first=True, padding_value=IGNORE)
        target = pad(target, (0, ids.shape[1] - target.shape[1]), value=IGNORE)
        wanted = target != IGNORE
        counts = wanted.sum(1).tolist()
        device = self._device
        rows = Segment(ids.to(device), lengths.to(device))
        hidden = self._reading.read(rows, going_on.to(device), wanted.any(1).to(device))
        nll = self._nll(hidden[wanted.to(device)], target[wanted].to(device))
        parts = np.split(nll, np.cumsum(counts)[:-1])
        return [
            Scored(lane.document, part, int(length), not goes_on)
            for lane, part, length, goes_on in zip(self._lanes, parts, lengths.tolist(), going_on.tolist(), strict=True)
        ]

    def _nll(self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]) -> Float[np.ndarray, " N"]:
        """Cross-entropies through the model's own head, a few positions at a time."""
        if not len(targets):
            return np.zeros(0)
        found: list[Tensor] = []
        size = self._positions_at_a_time
        for some, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            logits = at_least_float32(self._reading.view.head(some))
            found.append(logits.logsumexp(1) - logits.gather(1, wanted[:, None])[:, 0])
        nll = torch.cat(found).cpu().numpy()
        if not np.isfinite(nll).all():
            raise BackboneError(
                f"the model gave NaN or infinite losses (dtype {self._reading.model.dtype}); use --dtype float32, or a "
                "model whose weights are sound"
            )
        return nll
