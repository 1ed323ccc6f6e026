"""Splicing sentences into token ids is tokenizing the text with the sentences in it."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from recurrent_memory.evaluation.composite import Composite, NoiseText
from recurrent_memory.tasks.hiding import hide, word_ends
from recurrent_memory.tasks.library_text import take_text
from tiny_models import prose, tiny_tokenizer


@pytest.mark.parametrize("text", [prose(300), take_text(20_000)], ids=["prose", "library"])
def test_a_composite_is_the_tokenization_of_the_whole(text: str) -> None:
    tokenizer = tiny_tokenizer()
    noise = NoiseText(text, tokenizer)
    rng = random.Random(0)
    for _ in range(10):
        tokens = sorted(rng.sample(range(len(noise.ids) - 10), 3))
        if min(b - a for a, b in itertools.pairwise(tokens)) < 200:
            continue
        made = Composite(
            noise.ids, [noise.splice(token, [f"Mary went {index}."]) for index, token in enumerate(tokens)]
        )
        positions = [next(end for end in word_ends(text) if end >= noise.starts[token]) for token in tokens]
        whole = hide(text, [f"Mary went {index}." for index in range(3)], positions, rng)
        expected = tokenizer(whole.text, add_special_tokens=False)["input_ids"]
        assert made.length == len(expected)
        assert made.slice(0, made.length).tolist() == expected
        start = rng.randrange(made.length - 50)
        assert made.slice(start, start + 50).tolist() == expected[start : start + 50]


def test_what_comes_before_the_first_sentence_is_the_noise() -> None:
    noise = NoiseText(prose(100), tiny_tokenizer())
    made = Composite(noise.ids, [noise.splice(500, ["Mary went."])])
    assert np.array_equal(made.slice(0, made.first_change), noise.ids[: made.first_change])


def test_in_a_text_without_white_space_the_sentence_comes_last() -> None:
    tokenizer = tiny_tokenizer()
    noise = NoiseText("x" * 3_000, tokenizer)
    made = Composite(noise.ids, [noise.splice(1_000, ["Mary went."])])
    assert (
        made.slice(0, made.length).tolist()
        == tokenizer("x" * 3_000 + " Mary went.", add_special_tokens=False)["input_ids"]
    )
