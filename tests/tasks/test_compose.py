"""A composed text has exactly its length, its facts in order where it says, and the tokens of the whole text."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel, Metaspace, WordPiece

from recurrent_memory.errors import ConfigError, InputError
from recurrent_memory.tasks.base import Placement, Sample
from recurrent_memory.tasks.compose import Boundary, ComposedStream, compose
from recurrent_memory.tasks.library_text import take_text
from recurrent_memory.tasks.pieces import cut_pieces

FACTS = ("Mary went to the garden.", "John got the milk there.", "Mary moved to the office.")
SAMPLE = Sample(FACTS, "Where is Mary?", "office", (2,))


@cache
def noise_text() -> str:
    return take_text(60_000)


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([noise_text()[:20_000], *FACTS], trainer)
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([noise_text()[:20_000], *FACTS], trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([noise_text()[:20_000], *FACTS], trainer)
    tokenizer.enable_truncation(128)  # as sentence-transformers ship theirs
    tokenizer.enable_padding(length=128)
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": _byte_level,
    "metaspace": _metaspace,
    "word piece": _word_piece,
}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return MAKERS[kind]()


def whole(kind: str, text: str) -> list[int]:
    tokenizer = Tokenizer.from_str(tokenizer_of(kind).to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(MAKERS)),
    length=st.one_of(st.integers(150, 400), st.integers(400, 6000)),
    seed=st.integers(0, 10**6),
    placement=st.sampled_from(["first", "anywhere"]),
    boundary=st.sampled_from(["sentence", "word"]),
    chunk_chars=st.sampled_from([7, 1000, 10**6]),
)
def test_length_tokens_and_places(
    kind: str, length: int, seed: int, placement: Placement, boundary: Boundary, chunk_chars: int
) -> None:
    text = noise_text()
    chunks = [text[i : i + chunk_chars] for i in range(0, len(text), chunk_chars)]
    rng = random.Random(seed)
    composed = compose(SAMPLE, chunks, tokenizer_of(kind), length, rng, placement=placement, boundary=boundary)
    assert len(composed.token_ids) == length
    assert composed.token_ids == whole(kind, composed.text), "the tokens are those of the whole text"
    at = 0
    for fact, (start, stop) in zip(FACTS, composed.fact_spans, strict=True):
        assert at <= start < stop <= length, "the facts are whole, and in order"
        at = stop
        said = tokenizer_of(kind).decode(composed.token_ids[start:stop]).lower().replace(" .", ".").strip()
        # A token may hold the end of line after a fact too.
        assert said.startswith(fact.lower()), said
    assert (composed.question, composed.answer) == ("Where is Mary?", "office")
    left = composed.text
    for fact in FACTS:
        left = left.replace(f"{fact} " if placement == "first" else f" {fact}", "", 1)
    assert text.startswith(left), "the noise is not touched"
    if placement == "first":
        assert composed.text.startswith(" ".join(FACTS))


def test_a_stream_gives_the_same() -> None:
    composed = compose(SAMPLE, noise_text(), tokenizer_of("byte level"), 5000, random.Random(1))
    stream = ComposedStream(SAMPLE, [noise_text()], tokenizer_of("byte level"), 5000, random.Random(1))
    assert [token for block in stream for token in block] == composed.token_ids
    assert tuple(stream.fact_spans) == composed.fact_spans


def test_facts_stand_after_sentences_unless_words_are_asked_for() -> None:
    noise = "It was a dark night, and the rain fell. " * 400
    for boundary, ends in (("sentence", {"fell."}), ("word", set(noise.split()))):
        before = set[str]()
        for seed in range(40):
            composed = compose(
                Sample(FACTS[:1], "?", "x"), noise, tokenizer_of("byte level"), 800, random.Random(seed),
                boundary="sentence" if boundary == "sentence" else "word",
            )  # fmt: skip
            head = composed.text[: composed.text.index(FACTS[0])]
            before.add(head.split()[-1])
            assert head.endswith(" ")
        # Where the text ends before the sentence does, it is a word: 1 of 40 here.
        assert len(before - ends) <= 2
        assert len(before & ends) >= min(len(ends), 7)


def test_places_are_spread_evenly() -> None:
    """Quarters of the text, 60 facts expected in each: four standard deviations are 27."""
    quarters = [0] * 4
    for seed in range(240):
        composed = compose(
            Sample(FACTS[:1], "?", "x"), noise_text(), tokenizer_of("byte level"), 600, random.Random(seed)
        )
        quarters[min(3, composed.fact_spans[0][0] * 4 // 600)] += 1
    assert all(abs(count - 60) < 27 for count in quarters), quarters


def test_memory_does_not_grow_with_the_length() -> None:
    def peak(length: int) -> int:
        stream = ComposedStream(SAMPLE, endless(), tokenizer_of("byte level"), length, random.Random(0))
        tracemalloc.start()
        assert sum(len(block) for block in stream) == length
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    def endless() -> Iterator[str]:
        return itertools.cycle([noise_text()[:5000]])

    peak(3_000)
    assert peak(60_000) < 1.5 * peak(15_000)


@pytest.mark.parametrize(
    ("noise", "length", "options", "message"),
    [
        (
            ["Too short."],
            500,
            {},
            r"noise has \d+ tokens, too few for a text of 500; give more text, or itertools.cycle",
        ),
        ([], 500, {}, r"noise has 0 tokens, too few for a text of 500"),
        (["x" * 3_000_000], 500, {}, r"noise has no space between words in \d+ characters"),
        ([b"bytes"], 500, {}, r"noise has a bytes in it; give an iterable of strings"),
    ],
)
def test_noise_that_will_not_do(noise: list[Any], length: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose(SAMPLE, noise, tokenizer_of("byte level"), length, random.Random(0), **options)


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (10, {}, r"length=10 is too short for the 3 facts of the sample, which need up to \d+ tokens"),
        (500, {"placement": "last"}, r"placement='last' is unknown; give one of first, anywhere"),
        (500, {"boundary": "page"}, r"boundary='page' is unknown; give one of sentence, word"),
    ],
)
def test_arguments_that_will_not_do(length: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(SAMPLE, noise_text(), tokenizer_of("byte level"), length, random.Random(0), **options)


def test_a_tokenizer_without_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer is a object, which does not tell where its tokens are"):
        compose(SAMPLE, noise_text(), object(), 500, random.Random(0))


@given(st.lists(st.text(alphabet="ab \n.", max_size=40), max_size=8), st.integers(1, 30))
def test_pieces_are_the_text(chunks: list[str], size: int) -> None:
    pieces = list(cut_pieces(chunks, size))
    assert "".join(pieces) == "".join(chunks)
    for before, after in itertools.pairwise(pieces):
        assert not before[-1].isspace()
        assert after[0] == " "
        assert after[1].isalnum()
