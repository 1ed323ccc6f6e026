"""Pairs ask for the last value of a key."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.tasks.pairs import VALUES, Pairs
from recurrent_memory.tasks.registry import load_task


@pytest.mark.parametrize("rewrite", [False, True])
def test_the_answer_is_the_last_value_of_the_key(*, rewrite: bool) -> None:
    rng = random.Random(1)
    rewritten = 0
    for _ in range(300):
        sample = Pairs([1, 7, 40], rewrite=rewrite).draw(rng)
        pairs = [fact.removesuffix(".").split(" ") for fact in sample.facts]
        asked = [(index, value) for index, (key, value) in enumerate(pairs) if f"? {key}" == sample.question]
        assert asked[-1] == (*sample.supporting, sample.answer)
        rewritten += len(asked) > 1
    assert rewritten > 100 if rewrite else rewritten == 0


def test_every_pair_is_asked_for() -> None:
    rng = random.Random(2)
    asked = Counter(Pairs(4).draw(rng).supporting for _ in range(2000))
    # 500 of each: four standard deviations are 78.
    assert len(asked) == 4
    assert all(abs(count - 500) < 78 for count in asked.values()), asked


def test_numbers_of_pairs_are_drawn_evenly_and_values_are_from_the_list() -> None:
    rng = random.Random(3)
    samples = [Pairs([1, 200]).draw(rng) for _ in range(400)]
    assert abs(sum(len(sample.facts) == 1 for sample in samples) - 200) < 40
    assert {sample.answer for sample in samples} <= set(VALUES)


@pytest.mark.parametrize("num_pairs", [0, 201, [], [1, -1]])
def test_impossible_numbers_of_pairs_are_refused(num_pairs: Any) -> None:
    with pytest.raises(ConfigError, match="num_pairs"):
        load_task("pairs", num_pairs=num_pairs)


def test_a_recitation_goes_on_with_the_pairs_told_next() -> None:
    rng = random.Random(4)
    lengths = Counter[int]()
    for _ in range(300):
        sample = Pairs(4, recite=3).draw(rng)
        (first, *_), told = sample.supporting, [sample.facts[index] for index in sample.supporting]
        assert f"{sample.question.removeprefix('? ')} {sample.answer}." == " ".join(told)
        assert sample.supporting == tuple(range(first, min(first + 3, 4)))
        lengths[len(told)] += 1
    assert set(lengths) == {1, 2, 3}


def test_an_answer_of_several_pairs_is_open_and_one_of_none_is_refused() -> None:
    assert Pairs(recite=2).answers is None
    assert Pairs().answers == VALUES
    with pytest.raises(ConfigError, match="recite=0"):
        load_task("pairs", recite=0)
