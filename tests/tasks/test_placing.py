"""Short texts get short stories."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.tasks.base import DrawsFitting, Placement, Sample
from recurrent_memory.tasks.pieces import PieceEncoder
from recurrent_memory.tasks.placing import draw_placed
from recurrent_memory.tasks.registry import load_task
from tasks.tokenizer_kinds import tokenizer_of

STORIES = ("qa1", "qa2", "qa3", "qa4", "qa5")


@dataclass
class MostlyLong:
    """Every thousandth sample has one fact, the others a hundred."""

    name: str = "mostly-long"
    answers: tuple[str, ...] | None = None
    placement: Placement = "anywhere"
    drawn: int = field(default=0)

    def draw(self, rng: random.Random) -> Sample:
        self.drawn += 1
        return Sample(("Mary went home.",) * (1 if self.drawn % 1000 == 0 else 100), "Where is Mary?", "home")


def test_a_story_that_hardly_ever_fits_is_found_and_not_for_ever_looked_for() -> None:
    encoder = PieceEncoder(tokenizer_of("byte level"))
    assert len(draw_placed(MostlyLong(), encoder, 60, random.Random(0))[0].facts) == 1
    with pytest.raises(ConfigError, match="too short for the facts of 'mostly-long', which need about"):
        draw_placed(MostlyLong(), encoder, 60, random.Random(0), tries=999)


@pytest.mark.parametrize("name", STORIES)
def test_a_story_with_room_for_all_of_it_is_the_one_that_is_drawn(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, DrawsFitting)
    for seed in range(100):
        assert task.draw_fitting(random.Random(seed), lambda _: True) == task.draw(random.Random(seed))


@pytest.mark.parametrize("name", STORIES)
def test_a_story_that_does_not_fit_is_given_up_where_it_stops_to_fit(name: str) -> None:
    """So all that are finished fit, and of the others no fact more is drawn than shows it: stories go on by two."""
    task, seen = load_task(name), []
    assert isinstance(task, DrawsFitting)

    def fits(facts: Sequence[str]) -> bool:
        seen.append(len(facts))
        return len(facts) <= 4

    drawn = [task.draw_fitting(random.Random(seed), fits) for seed in range(400)]
    finished = [sample for sample in drawn if sample is not None]
    assert finished
    assert all(len(sample.facts) <= 4 for sample in finished)
    assert all(length <= 6 for length in seen)
    assert (len(finished) < len(drawn)) == (name != "qa4")
