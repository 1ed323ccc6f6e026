"""Memorize, detect and reason ask for what was said."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.tasks.base import Task
from recurrent_memory.tasks.recall import Detect, Memorize, Reason
from recurrent_memory.tasks.whereabouts import PLACES
from tasks.babi_reader import solve


@pytest.mark.parametrize(("task", "num_facts"), [(Memorize(), 1), (Detect(), 1), (Reason(), 2)])
def test_the_answer_follows_from_the_facts(task: Task, num_facts: int) -> None:
    rng = random.Random(5)
    answers = Counter[str]()
    for _ in range(1200):
        sample = task.draw(rng)
        assert len(sample.facts) == num_facts
        assert solve(sample.facts, sample.question) == {sample.answer}
        answers[sample.answer] += 1
    # Six answers, 200 of each: four standard deviations are 52.
    assert set(answers) == set(PLACES)
    assert all(abs(count - 200) < 52 for count in answers.values()), answers


def test_only_memorize_has_its_fact_first() -> None:
    assert [task.placement for task in (Memorize(), Detect(), Reason())] == ["first", "anywhere", "anywhere"]


def test_questions_of_reason_may_keep_to_the_words_of_the_fact() -> None:
    other_way = 0
    for seed in range(200):
        plain = Reason().draw(random.Random(seed))
        kept = Reason(converse=False).draw(random.Random(seed))
        assert (kept.facts, kept.answer) == (plain.facts, plain.answer)
        asked = kept.facts[kept.supporting[0]]
        assert asked == f"The {kept.answer} {kept.question.removeprefix('What ').rstrip('?')}."
        other_way += plain != kept
    assert 60 < other_way < 140


def test_either_fact_of_reason_is_asked_for() -> None:
    rng = random.Random(6)
    asked = Counter(Reason().draw(rng).supporting for _ in range(1000))
    assert all(400 < asked[index,] < 600 for index in range(2)), asked


def test_some_directions_of_reason_may_be_asked_for_more_often() -> None:
    task = Reason(directions={"north": 4, "south": 1, "east": 1})
    rng, asked, told = random.Random(7), Counter[str](), Counter[str]()
    for _ in range(1200):
        sample = task.draw(rng)
        assert solve(sample.facts, sample.question) == {sample.answer}
        ways = [fact.split()[3] for fact in sample.facts]
        asked[ways[sample.supporting[0]]] += 1
        told.update(ways)
    assert set(asked) == {"north", "south", "east"}
    assert all(abs(asked[way] - 200 * weight) < 68 for way, weight in (("north", 4), ("south", 1), ("east", 1))), asked
    assert told["west"] > 50


@pytest.mark.parametrize("directions", ["north", ["north"], {}, {"up": 1}])
def test_directions_of_reason_that_there_are_not_are_refused(directions: Any) -> None:
    with pytest.raises(ConfigError, match="must give weights of some of north, south, east, west"):
        Reason(directions=directions)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "4"])
def test_weights_of_directions_are_numbers_above_0(weight: Any) -> None:
    with pytest.raises(ConfigError, match="must be numbers above 0"):
        Reason(directions={"north": 1, "south": weight})
