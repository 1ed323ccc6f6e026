"""Hiding sentences changes nothing but what it puts in."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from recurrent_memory.tasks.hiding import hide, hide_stream, word_ends

TEXT = st.text(alphabet="ab \n.é", max_size=200)


@given(TEXT, st.lists(st.integers(0, 250), max_size=4), st.integers(0, 5))
def test_taking_the_sentences_out_gives_the_text_back(text: str, positions: list[int], seed: int) -> None:
    sentences = [f"<{index}>" for index in range(len(positions))]
    hidden = hide(text, sentences, positions, random.Random(seed), newline_share=0.5)
    for (start, end), sentence in zip(hidden.spans, sentences, strict=True):
        assert hidden.text[start:end] == sentence
    left = hidden.text
    for start, end in sorted(hidden.spans, reverse=True):
        left = left[: start - 1] + left[end:]
    assert left == text


@given(TEXT, st.lists(st.integers(0, 199), max_size=4), st.integers(1, 50))
def test_a_stream_hides_where_the_whole_text_does(text: str, positions: list[int], size: int) -> None:
    positions = sorted(p for p in positions if p < len(text))
    inserts = [(position, f"<{index}>") for index, position in enumerate(positions)]
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    streamed = "".join(hide_stream(chunks, inserts))
    for index, (position, sentence) in enumerate(inserts):
        at = streamed.index(sentence)
        assert streamed[at - 1] == " ", "a sentence stands after a space of its own"
        before = at - 1 - sum(len(s) + 1 for _, s in inserts[:index])
        later_ends = [end for end in word_ends(text) if end >= position]
        assert before == (later_ends[0] if later_ends and text[later_ends[0] :][:1].isspace() else len(text))
    for _, sentence in inserts:
        streamed = streamed.replace(f" {sentence}", "", 1)
    assert streamed == text
