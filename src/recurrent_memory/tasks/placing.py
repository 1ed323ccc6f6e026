"""Where the facts of a sample are put in a text of so many tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..errors import ConfigError
from .base import DrawsFitting, Sample, Task
from .pieces import PieceEncoder

_SLACK_TOKENS = 4  # a fact may take a token more between other words
TRIES = 2000
"""Of 10,000 stories of bAbI's third task 284 fit 100 tokens of the small model's, 59 fit 60; the shortest has 40."""


def draw_placed(
    task: Task, encoder: PieceEncoder, length: int, rng: random.Random, tries: int = TRIES
) -> tuple[Sample, list[int], int | None]:
    """A sample that fits a text, and the tokens of the noise at which its facts are put.

    Args:
        task: Makes samples; those that do not fit are passed over, so that short texts get short stories.
        encoder: Counts tokens.
        length: Tokens of the text.
        rng: Draws all.
        tries: How many samples are drawn before it is said that none fits.

    Returns:
        The sample; a token for each fact, uniform over the noise, none where the facts begin the text; the last token at
        which a fact may be put.

    Raises:
        ConfigError: if no sample fits.
    """

    def cost(facts: Sequence[str]) -> int:
        return sum(encoder.count(f" {fact}") + _SLACK_TOKENS for fact in facts)

    def fits(facts: Sequence[str]) -> bool:
        return cost(facts) <= length

    draws_fitting = isinstance(task, DrawsFitting)
    for _ in range(tries):
        sample = task.draw_fitting(rng, fits) if draws_fitting else task.draw(rng)
        if sample is not None and fits(sample.facts):
            break
    else:
        raise ConfigError(
            f"length={length} is too short for the facts of {task.name!r}, which need about {cost(task.draw(rng).facts)} tokens; "
            "give a greater length"
        )
    if task.placement == "first":
        return sample, [], None
    limit = length - cost(sample.facts)
    return sample, sorted(rng.randrange(limit + 1) for _ in sample.facts), limit
