"""Facts that are a text of their own are all of it, and each is known where it stands."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.models import load_model
from recurrent_memory.tasks.alone import FactsText, draw_alone
from recurrent_memory.tasks.pairs import KEYS, VALUES, Pairs
from recurrent_memory.tasks.pieces import PieceEncoder
from recurrent_memory.tasks.recall import Detect
from tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def encoder() -> PieceEncoder:
    return PieceEncoder(load_model("shipped", "cpu", "float32")[1])


def test_a_text_is_its_facts_and_every_span_is_a_fact() -> None:
    tokenizer = tiny_tokenizer()
    facts = ("Mary went to the garden.", "He left.", "John moved to the office.")
    text = FactsText(PieceEncoder(tokenizer), facts)
    ids = text.slice(0, len(text))
    assert tokenizer.decode(ids.tolist()).strip() == " ".join(facts)
    assert [tokenizer.decode(ids[start:stop].tolist()).strip() for start, stop in text.fact_spans] == list(facts)
    assert np.array_equal(np.concatenate([text.slice(0, 3), text.slice(3, len(text))]), ids)


def test_every_pair_is_four_tokens_of_the_small_model(encoder: PieceEncoder) -> None:
    """What recipes/pairs.yaml rests on: in segments of four tokens every pair has one of its own."""
    assert {encoder.count(f" {key} is {VALUES[0]}.") for key in KEYS} == {4}
    assert {encoder.count(f" {KEYS[0]} is {value}.") for value in VALUES} == {4}
    facts = tuple(f"{key} is {VALUES[n % 50]}." for n, key in enumerate(KEYS))
    assert FactsText(encoder, facts).fact_spans == [(4 * n, 4 * n + 4) for n in range(len(KEYS))]


def test_a_text_has_as_many_pairs_as_are_its_length(encoder: PieceEncoder) -> None:
    task, rng = Pairs([1, 2, 5, 9], alone=True), random.Random(0)
    for number in (1, 2, 5, 9):
        sample, text = draw_alone(task, encoder, 4 * number, rng)
        assert len(sample.facts) == number == len(text.fact_spans)
        assert len(text) == 4 * number


def test_the_pair_that_is_asked_for_is_any_of_them_where_lengths_are_exact(encoder: PieceEncoder) -> None:
    task, rng = Pairs([1, 2, 3, 4], alone=True), random.Random(1)
    asked = Counter(draw_alone(task, encoder, 16, rng)[0].supporting for _ in range(800))
    # 200 of each: four standard deviations are 49.
    assert len(asked) == 4
    assert all(abs(count - 200) < 49 for count in asked.values()), asked


def test_lengths_that_cannot_be_are_named_with_those_that_can(encoder: PieceEncoder) -> None:
    with pytest.raises(ConfigError, match=r"length=10.*texts of 4, 8 tokens"):
        draw_alone(Pairs([1, 2], alone=True), encoder, 10, random.Random(0))


def test_any_task_may_stand_alone(encoder: PieceEncoder) -> None:
    task = Detect()
    lengths = {sum(encoder.count(f" {fact}") for fact in task.draw(random.Random(n)).facts) for n in range(50)}
    sample, text = draw_alone(task, encoder, max(lengths), random.Random(0))
    assert len(text) == max(lengths)
    assert len(sample.facts) == 1
