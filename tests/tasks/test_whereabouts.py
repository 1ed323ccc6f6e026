"""The task speaks bAbI's language."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from recurrent_memory.tasks.library_text import library_files, take_text
from recurrent_memory.tasks.whereabouts import PEOPLE, PLACES, VERBS, draw_distractor, draw_fact, question

BABI = Path(__file__).parents[3] / "shared/data/babi/en-10k/qa1_single-supporting-fact_test.txt"


@pytest.mark.data
@pytest.mark.skipif(not BABI.exists(), reason="needs ../shared/data/babi")
def test_people_places_and_verbs_are_those_of_babi() -> None:
    people, places, verbs = set[str](), set[str](), set[str]()
    for line in BABI.read_text().splitlines():
        if match := re.fullmatch(r"\d+ (\w+) ([\w ]+?) the (\w+)\.", line):
            people.add(match[1])
            verbs.add(match[2])
            places.add(match[3])
        else:
            assert re.fullmatch(r"\d+ Where is (\w+)\? \t(\w+)\t\d+", line), line
    assert (people, places, verbs) == (set(PEOPLE), set(PLACES), set(VERBS))


def test_facts_and_questions_read_as_babi_writes_them() -> None:
    fact = draw_fact(random.Random(0))
    assert re.fullmatch(r"(\w+) ([\w ]+) the (\w+)\.", fact.sentence)
    assert question("Mary") == "Where is Mary?"


def test_distractors_are_never_facts() -> None:
    rng = random.Random(1)
    for unseen in (False, True):
        for _ in range(500):
            sentence = draw_distractor(rng, unseen=unseen)
            assert not re.match(rf"({'|'.join(PEOPLE)}) ({'|'.join(VERBS)}) ", sentence), sentence


def test_distractors_of_evaluation_are_not_those_of_training() -> None:
    rng = random.Random(2)
    training = {draw_distractor(rng) for _ in range(20_000)}
    unseen = {draw_distractor(rng, unseen=True) for _ in range(2_000)}
    assert not {s for s in training & unseen if not s.startswith("Where")}


def test_the_library_text_is_long_and_always_the_same() -> None:
    assert take_text(5_000) == take_text(5_000)
    assert len(take_text(200_000)) == 200_000
    assert not any("site-packages" in str(path) for path in library_files())
