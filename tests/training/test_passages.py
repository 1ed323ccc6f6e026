"""Text from anywhere, and passages around words that facts are made of."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from recurrent_memory.errors import InputError
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.tasks.whereabouts import PEOPLE, PLACES
from recurrent_memory.training.passages import PASSAGE_CHARS, HardPassages, from_anywhere, phrases_of_facts
from tiny_models import prose


def buried(word: str, times: int, seed: int) -> str:
    return " ".join(f"{prose(120, seed=seed + n)} {word} {prose(120, seed=seed + 50 + n)}" for n in range(times))


NOISE = [[buried("zebra", 9, 0), buried("lynx", 2, 300)], [buried("quokka", 1, 600)]]


def passages(words: tuple[str, ...], seed: int, count: int) -> list[str]:
    found = itertools.islice(HardPassages(NOISE, words).draw(random.Random(seed)), count)
    return [passage.removeprefix("\n\n") for passage in found]


def test_phrases_of_facts_are_those_of_all_samples() -> None:
    phrases = phrases_of_facts([load_task("detect")])
    assert {*PEOPLE, *PLACES, "went", "journeyed", "the", "to"} <= set(phrases)
    assert {*(f"to the {place}" for place in PLACES), "went back to", "the office", "moved to"} <= set(phrases)
    assert max(len(phrase.split()) for phrase in phrases) == 3
    assert len(set(phrases)) == len(phrases) < 100
    assert set(phrases) < set(phrases_of_facts([load_task("detect"), load_task("qa4")]))


def test_every_passage_has_its_word_and_is_short_and_as_it_stands_in_its_document() -> None:
    documents = [document for documents in NOISE for document in documents]
    for passage in passages(("zebra", "lynx", "quokka"), 0, 200):
        assert any(word in passage.split() for word in ("zebra", "lynx", "quokka"))
        assert len(passage) <= PASSAGE_CHARS + 30
        assert any(f" {passage} " in f" {document} " for document in documents)


def test_a_rare_word_comes_as_often_as_any_other() -> None:
    found = Counter(
        word
        for p in passages(("zebra", "lynx", "quokka"), 1, 300)
        for word in set(p.split()) & {"zebra", "lynx", "quokka"}
    )
    assert min(found.values()) > 60
    assert max(found.values()) < 160


def test_a_word_is_anywhere_in_its_passage() -> None:
    at = [
        passage.split().index("quokka") / len(passage.split())
        for passage in passages(("quokka",), 2, 100)[:100]
        if "quokka" in passage
    ]
    assert min(at) < 0.1
    assert max(at) > 0.9


def test_words_that_are_not_there_are_left_out_and_parts_of_words_are_none() -> None:
    assert HardPassages(NOISE, ("zebr", "lynx", "ebra")).phrases == ("lynx",)
    with pytest.raises(InputError, match="noise has none of 'zebr', so none of it is hard noise"):
        HardPassages(NOISE, ("zebr",))


def test_text_from_anywhere_goes_on_in_another_document() -> None:
    text = "".join(itertools.islice(from_anywhere(NOISE, random.Random(0)), 40))
    parts = text.split("\n\n")
    assert len(parts) > 2
    assert all(any(document.endswith(part) for documents in NOISE for document in documents) for part in parts[:-1])
