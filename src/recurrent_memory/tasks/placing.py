"""Where the facts of a sample are put in a text of so many tokens."""

from __future__ import annotations

import random

from ..errors import ConfigError
from .base import Sample, Task
from .pieces import PieceEncoder

_SLACK_TOKENS = 4  # a fact may take a token more between other words
_TRIES = 200


def draw_placed(
    task: Task, encoder: PieceEncoder, length: int, rng: random.Random
) -> tuple[Sample, list[int], int | None]:
    """A sample that fits a text, and the tokens of the noise at which its facts are put.

    Args:
        task: Makes samples; those that do not fit are passed over, so that short texts get short stories.
        encoder: Counts tokens.
        length: Tokens of the text.
        rng: Draws all.

    Returns:
        The sample; a token for each fact, uniform over the noise, none where the facts begin the text; the last token at
        which a fact may be put.

    Raises:
        ConfigError: if no sample fits.
    """
    cost = 0
    for _ in range(_TRIES):
        sample = task.draw(rng)
        cost = sum(encoder.count(f" {fact}") + _SLACK_TOKENS for fact in sample.facts)
        if cost <= length:
            break
    else:
        raise ConfigError(
            f"length={length} is too short for the facts of {task.name!r}, which need about {cost} tokens; give a greater length"
        )
    if task.placement == "first":
        return sample, [], None
    limit = length - cost
    return sample, sorted(rng.randrange(limit + 1) for _ in sample.facts), limit
