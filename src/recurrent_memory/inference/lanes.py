"""Many texts at once: each in a lane of one batch, and where a text ends, the next one begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BackboneError, InputError
from ..state import MemoryState
from .progress import Progress
from .token_feed import TokenFeed

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

SEGMENTS_AT_A_TIME = 16


def check_finite(state: MemoryState, which: str, model: RecurrentMemoryModel) -> None:
    """Refuse a memory from which nothing can be read any more.

    Raises:
        BackboneError: if it holds NaN or infinity.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values()):
        raise BackboneError(
            f"the memory {which} became NaN or infinite (dtype {model.dtype}); use --dtype float32, or a model whose "
            "weights are sound"
        )


class Lanes:
    """Reads texts side by side. The lanes always go on by whole segments together, so that no row is padded.

    Args:
        model: The model.
        feeds: The texts, each with its number; taken when a lane is free.
        lanes: How many texts at a time.
        progress: Told how many tokens have been read in all.
    """

    def __init__(
        self, model: RecurrentMemoryModel, feeds: Iterator[tuple[int, TokenFeed]], lanes: int, progress: Progress
    ) -> None:
        self._model = model
        self._progress = progress
        self._tokens = 0
        self._feeds = feeds
        self._lanes = lanes
        self._active: list[tuple[int, TokenFeed]] = []
        self._state: MemoryState | None = None  # of the active lanes, in order; nothing is pending in it

    def run(self) -> Iterator[tuple[int, MemoryState]]:
        """The number and the state of each text, as they end."""
        try:
            while self._fill():
                segments = [self._whole_segments(feed) for _, feed in self._active]
                if min(segments):
                    self._advance(min(segments))
                    continue
                ended = [lane for lane, count in enumerate(segments) if not count]
                yield from [self._finished(lane) for lane in ended]
                self._remove(ended)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the texts."""
        for _, feed in self._active:
            feed.close()

    def _fill(self) -> bool:
        """Give free lanes their texts; whether there is one."""
        free = self._lanes - len(self._active)
        new = [text for _, text in zip(range(free), self._feeds, strict=False)]
        if new:
            self._active += new
            fresh = self._model.initial_state(len(new))
            self._state = fresh if self._state is None else MemoryState.cat([self._state, fresh])
        return bool(self._active)

    def _whole_segments(self, feed: TokenFeed) -> int:
        """How many segments can be folded now: whole ones, after which the text goes on."""
        length = self._model.memory_config.segment_length
        followed = max(0, feed.available(SEGMENTS_AT_A_TIME * length + 1) - 1)
        return min(followed // length, SEGMENTS_AT_A_TIME)

    @torch.no_grad()
    def _advance(self, count: int) -> None:
        length = self._model.memory_config.segment_length
        ids: Tensor = torch.stack([feed.take(count * length) for _, feed in self._active]).to(self._model.device)
        self._state = self._model.fold_whole(ids, self._known_state())
        self._report(ids.numel())

    def _report(self, tokens: int) -> None:
        self._tokens += tokens
        self._progress.update(self._tokens, None)

    def _finished(self, lane: int) -> tuple[int, MemoryState]:
        number, feed = self._active[lane]
        rest = feed.take(self._model.memory_config.segment_length)
        state = self._known_state().index(lane)
        if not rest.numel() and not bool(state.tokens_read.any()):
            raise InputError(f"text {number} (counted from 0) is empty; leave it out")
        state = self._model.read(rest[None], memory_state=state)
        check_finite(state, f"of text {number} (counted from 0)", self._model)
        self._report(rest.numel())
        return number, state

    def _remove(self, ended: list[int]) -> None:
        for lane in ended:
            self._active[lane][1].close()
        kept = [lane for lane in range(len(self._active)) if lane not in ended]
        self._state = self._known_state().index(kept) if kept else None
        self._active = [self._active[lane] for lane in kept]

    def _known_state(self) -> MemoryState:
        assert self._state is not None, "a lane is active"
        return self._state
