"""Lanes know what they have said."""

from __future__ import annotations

import json
import random
import re

import pytest

from recurrent_memory.tasks.whereabouts import PEOPLE, PLACES, VERBS
from recurrent_memory.training.lanes import Lane
from tiny_models import prose, tiny_tokenizer

FACT = re.compile(rf"({'|'.join(PEOPLE)}) (?:{'|'.join(VERBS)}) the ({'|'.join(PLACES)})\.")
NOISE = [[re.sub("Mary|John|Sandra", "Nobody", prose(400, seed)) for seed in range(3)]]


@pytest.mark.parametrize("segment_length", [12, 40])
def test_who_is_where_is_what_the_text_said_last(segment_length: int) -> None:
    tokenizer = tiny_tokenizer()
    for seed in range(5):
        lane = Lane(tokenizer.backend_tokenizer, NOISE, seed, 2.0, 0.0, segment_length)
        taken: list[int] = []
        for _ in range(40):
            segment = lane.take()
            assert 1 <= len(segment) <= segment_length
            taken += segment
            for position, person in lane.said:
                assert lane.age[person] == 0
                assert 0 <= position < len(segment) - 1
        text = tokenizer.decode(taken)
        assert lane.known == dict(FACT.findall(text))


def test_a_lane_is_a_function_of_its_seed() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    first, second, other = (Lane(backend, NOISE, seed, 1.0, 0.5, 16) for seed in (3, 3, 4))
    texts = [[lane.take() for _ in range(30)] for lane in (first, second, other)]
    assert texts[0] == texts[1] != texts[2]


def test_rates_are_kept() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    counts: list[int] = []
    for rate in (0.05, 1.0):
        lane = Lane(backend, NOISE, random.Random(0).getrandbits(30), rate, 0.0, 64)
        said = 0
        for _ in range(300):
            lane.take()
            said += len(lane.said)
        counts.append(said)
    assert counts[0] < counts[1] / 5


def test_a_person_that_was_lost_is_asked_for_again_once_the_text_speaks_of_them() -> None:
    lane = Lane(tiny_tokenizer().backend_tokenizer, NOISE, 1, 1.0, 0.0, 40)
    while len(lane.known) < 2:
        lane.take()
    person = min(lane.known)
    lane.forget(person)
    assert person not in lane.known
    assert person not in lane.age
    assert lane.lost == {person}
    while person not in lane.known:
        assert lane.lost == {person}
        lane.take()
    assert lane.lost == set()


def test_facts_of_the_beginning_come_besides() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    known: list[int] = []
    for first_facts in (0.0, 3.0):
        lanes = [Lane(backend, NOISE, seed, 0.0, 0.0, 40, first_facts) for seed in range(20)]
        for lane in lanes:
            for _ in range(30):
                lane.take()
        known.append(sum(len(lane.known) for lane in lanes))
    assert known[0] == 0
    assert 20 * 1.2 < known[1] < 20 * 3.2


def test_a_lane_that_was_written_down_goes_on_the_same() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    for seed in range(4):
        lane = Lane(backend, NOISE, seed, 1.0, 0.5, 24, 2.0)
        for taken in range(40):
            if taken % 8 == 5 and lane.known:
                lane.forget(min(lane.known))
            written = json.dumps(lane.values())
            other = Lane.restored(backend, NOISE, json.loads(written))
            assert json.dumps(other.values()) == written
            assert (other.said, other.lost) == (lane.said, lane.lost)
            assert other.take() == lane.take()
            lane = other
        assert lane.known
        assert NOISE[0][0][200:260] not in written
