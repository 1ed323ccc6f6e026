"""A window on a text gives the tokens of the whole text, and sentences put into it those of the text with them in it."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from recurrent_memory.errors import InputError
from recurrent_memory.tasks.hiding import hide, word_ends
from recurrent_memory.tasks.library_text import take_text
from recurrent_memory.tasks.noise_source import open_noise
from recurrent_memory.tasks.noise_window import SENTENCE_END, SENTENCE_REACH_CHARS, Boundary, NoiseWindow, SampleText
from recurrent_memory.tasks.pieces import PieceEncoder
from recurrent_memory.tasks.placing import draw_placed
from recurrent_memory.tasks.registry import load_task
from tasks.tokenizer_kinds import MAKERS, tokenizer_of, whole

STEP = 100
KINDS = sorted(MAKERS)
TEXT = take_text(60_000)
FACTS = tuple(f"Mary went to the garden number {number}." for number in range(12))


def chunks(text: str) -> Iterator[str]:
    return (text[at : at + 777] for at in range(0, len(text), 777))


def taken(sample: SampleText, length: int) -> list[int]:
    ids: list[int] = []
    for start in range(0, length, STEP):
        ids += sample.slice(start, min(start + STEP, length)).tolist()
        sample.forget(start + STEP)
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_gives_the_tokens_of_the_whole(kind: str) -> None:
    window = NoiseWindow(chunks(TEXT), tokenizer_of(kind))
    expected = whole(kind, TEXT)[:15_000]
    assert taken(SampleText(window, (), ()), len(expected)) == expected
    assert window.first > 0, "it has forgotten the beginning"


@pytest.mark.parametrize("boundary", ["word", "sentence"])
@pytest.mark.parametrize("num_facts", [1, 3, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_tokenization_of_its_text(kind: str, num_facts: int, boundary: Boundary) -> None:
    starts = [start for start, _ in whole_offsets(kind, TEXT)]
    for seed in range(4):
        facts, targets, limit, length = drawn(kind, num_facts, seed)
        window = NoiseWindow(chunks(TEXT), tokenizer_of(kind))
        sample = SampleText(window, facts, targets, boundary, limit)
        ids = taken(sample, length)
        places = [place_of(starts[target], starts[limit], boundary) for target in targets]
        hidden = hide(TEXT, facts, places, random.Random(0))
        offsets = whole_offsets(kind, hidden.text)
        assert ids == whole(kind, hidden.text)[:length]
        for (first, stop), (start, end) in zip(sample.fact_spans, hidden.spans, strict=True):
            touching = [index for index, (a, b) in enumerate(offsets[:length]) if b > start and a < end]
            assert (first, stop) == (touching[0], touching[-1] + 1)
            assert stop <= length


def place_of(char: int, limit: int, boundary: Boundary) -> int:
    """Where a fact belongs, found in the whole text."""
    ends = [match.end() for match in SENTENCE_END.finditer(TEXT) if match.end() >= char]
    if boundary == "sentence" and ends and ends[0] <= min(char + SENTENCE_REACH_CHARS, limit):
        return ends[0]
    words = word_ends(TEXT)
    return words[max(0, bisect_right(words, char) - 1)]


def drawn(kind: str, num_facts: int, seed: int) -> tuple[tuple[str, ...], list[int], int, int]:
    rng = random.Random(seed)
    length, facts = rng.choice([700, 3_000, 9_000]), FACTS[:num_facts]
    limit = length - sum(len(whole(kind, f" {fact}")) + 4 for fact in facts)
    return facts, sorted(rng.randrange(limit + 1) for _ in facts), limit, length


def whole_offsets(kind: str, text: str) -> list[tuple[int, int]]:
    tokenizer = Tokenizer.from_str(tokenizer_of(kind).to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).offsets


@pytest.mark.parametrize("kind", KINDS)
def test_facts_without_places_begin_the_text(kind: str) -> None:
    window = NoiseWindow(chunks(TEXT), tokenizer_of(kind))
    sample = SampleText(window, FACTS[:2], ())
    assert taken(sample, 1_500) == whole(kind, f"{FACTS[0]} {FACTS[1]} {TEXT}")[:1_500]
    assert sample.fact_spans[0][0] == 0


def test_noise_that_ends_is_named_and_what_is_forgotten_is_gone() -> None:
    tokenizer = tokenizer_of("byte level")
    window = NoiseWindow(["A short text. "], tokenizer)
    with pytest.raises(InputError, match=r"noise has \d+ tokens, too few; give more text"):
        window.slice(0, 1_000)
    window = NoiseWindow(chunks(take_text(200_000)), tokenizer)
    window.slice(0, 40_000)
    window.forget(30_000)
    with pytest.raises(ValueError, match="token 5 is forgotten"):
        window.slice(5, 10)


def test_a_source_begins_anywhere_and_again_at_its_end(tmp_path: Path) -> None:
    text = "".join(f"Sentence {number}. " for number in range(200))
    (tmp_path / "text.txt").write_text(text)
    source = open_noise(str(tmp_path / "text.txt"))
    assert source.num_chars == len(text)
    stream = source.from_char(len(text) + 100)
    got = ""
    while len(got) < 2 * len(text):
        got += next(stream)
    assert got.startswith((text[100:] + text)[: len(got)])
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(InputError, match="has 5 characters; give text of at least 1,000"):
        open_noise(str(tmp_path / "short.txt"))


def test_places_are_spread_evenly() -> None:
    """Quarters of the text, 60 facts expected in each: four standard deviations are 27."""
    quarters, encoder = [0] * 4, PieceEncoder(tokenizer_of("byte level"))
    for seed in range(240):
        sample, targets, limit = draw_placed(load_task("detect"), encoder, 600, random.Random(seed))
        text = SampleText(
            NoiseWindow(chunks(TEXT), tokenizer_of("byte level"), 2_000), sample.facts, targets, limit=limit
        )
        text.slice(0, 600)
        quarters[min(3, text.fact_spans[0][0] * 4 // 600)] += 1
    assert all(abs(count - 60) < 27 for count in quarters), quarters


def test_memory_does_not_grow_with_the_length() -> None:
    def peak(length: int) -> int:
        window = NoiseWindow(itertools.cycle([TEXT[:5000]]), tokenizer_of("byte level"))
        sample = SampleText(window, FACTS[:2], [length // 3, length // 2])
        tracemalloc.start()
        for start in range(0, length, STEP):
            sample.slice(start, start + STEP)
            sample.forget(start + STEP)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(3_000)
    assert peak(60_000) < 1.5 * peak(15_000)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ([], "noise has 0 tokens, too few; give more text"),
        (["x" * 3_000_000], r"noise has no space between words in \d+ characters"),
        ([b"bytes"], "noise has a bytes in it; give an iterable of strings"),
    ],
)
def test_noise_that_will_not_do(noise: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoiseWindow(noise, tokenizer_of("byte level")).slice(0, 500)
