"""Texts that are the facts of a sample and nothing else."""

from __future__ import annotations

import random

import numpy as np

from ..errors import ConfigError
from .base import Sample, Task
from .pieces import PieceEncoder

_TRIES = 10_000


class FactsText:
    """The token ids of some facts, one after the other. In its use it is a `SampleText`.

    Args:
        encoder: Tokenizes.
        facts: The sentences. A space stands before each, the first as well: all are then the same tokens wherever they stand.

    Example:
        >>> FactsText(encoder, ("garden is night.", "man is house.")).fact_spans  # doctest: +SKIP
        [(0, 4), (4, 8)]
    """

    def __init__(self, encoder: PieceEncoder, facts: tuple[str, ...]) -> None:
        block = encoder.alone("".join(f" {fact}" for fact in facts))
        self._ids = np.asarray(block.token_ids, dtype=np.int64)
        self.fact_spans: list[tuple[int, int]] = []
        start = 0
        for fact in facts:
            self.fact_spans.append(block.tokens_of(start + 1, start + 1 + len(fact)))
            start += 1 + len(fact)

    def __len__(self) -> int:
        return len(self._ids)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The ids `start … stop`."""
        return self._ids[start:stop]

    def forget(self, start: int) -> None:
        """Nothing: the text is short."""


def draw_alone(task: Task, encoder: PieceEncoder, length: int, rng: random.Random) -> tuple[Sample, FactsText]:
    """A sample whose facts are a text of exactly so many tokens.

    Args:
        task: Makes samples; those of other lengths are passed over.
        encoder: Tokenizes.
        length: Tokens of the text.
        rng: Draws all.

    Raises:
        ConfigError: if none of 10,000 samples has that length.
    """
    seen: set[int] = set()
    for _ in range(_TRIES):
        sample = task.draw(rng)
        num_tokens = sum(encoder.count(f" {fact}") for fact in sample.facts)
        if num_tokens == length and len(text := FactsText(encoder, sample.facts)) == length:
            return sample, text
        seen.add(num_tokens)
    lengths = sorted(seen)
    known = ", ".join(map(str, lengths[:20])) + (" …" if len(lengths) > 20 else "")
    raise ConfigError(
        f"length={length}: no facts of {task.name!r} are a text of exactly so many tokens, as they have to be where they stand "
        f"alone; there are texts of {known} tokens; give one of these lengths"
    )
