"""Pairs ask for the last value of a key."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.tasks.pairs import KEYS, VALUES, Pairs
from recurrent_memory.tasks.registry import load_task


@pytest.mark.parametrize("rewrite", [False, True])
def test_the_answer_is_the_last_value_of_the_key(*, rewrite: bool) -> None:
    rng = random.Random(1)
    rewritten = 0
    for _ in range(300):
        sample = Pairs([1, 7, 40], rewrite=rewrite).draw(rng)
        pairs = [fact.removesuffix(".").split(" is ") for fact in sample.facts]
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


@pytest.mark.parametrize("num_pairs", [0, 201, [], [1, -1], "x", 2.5, [1, "2"], True])
def test_impossible_numbers_of_pairs_are_refused(num_pairs: Any) -> None:
    with pytest.raises(ConfigError, match="num_pairs"):
        load_task("pairs", num_pairs=num_pairs)


def test_keys_are_the_first_so_many() -> None:
    rng = random.Random(4)
    drawn = Counter(fact.split()[0] for _ in range(400) for fact in Pairs([1, 3], num_keys=5).draw(rng).facts)
    assert set(drawn) == set(KEYS[:5])
    assert max(Pairs(num_keys=20).num_pairs) == 20


@pytest.mark.parametrize("num_keys", [0, 201, "x", 2.5, None])
def test_impossible_numbers_of_keys_are_refused(num_keys: Any) -> None:
    with pytest.raises(ConfigError, match="num_keys"):
        load_task("pairs", num_keys=num_keys)


def test_there_cannot_be_more_pairs_than_keys() -> None:
    with pytest.raises(ConfigError, match="from 1 to 16"):
        Pairs([4, 17], num_keys=16)
