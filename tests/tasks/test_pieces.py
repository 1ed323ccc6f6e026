"""A text is cut into pieces between words."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent_memory.errors import ConfigError
from recurrent_memory.tasks.pieces import PieceEncoder, cut_pieces, plain_tokenizer
from tasks.tokenizer_kinds import tokenizer_of


@given(st.lists(st.text(alphabet="ab \n.", max_size=40), max_size=8), st.integers(1, 30))
def test_pieces_are_the_text(chunks: list[str], size: int) -> None:
    pieces = list(cut_pieces(chunks, size))
    assert "".join(pieces) == "".join(chunks)
    for before, after in itertools.pairwise(pieces):
        assert not before[-1].isspace()
        assert after[0] == " "
        assert after[1].isalnum()


def test_a_tokenizer_that_cuts_and_pads_is_taken_without_that_and_left_as_it_is() -> None:
    given_tokenizer = tokenizer_of("word piece")
    assert len(plain_tokenizer(given_tokenizer).encode("Mary went. " * 100, add_special_tokens=False).ids) > 128
    assert len(plain_tokenizer(given_tokenizer).encode("Mary", add_special_tokens=False).ids) < 128
    assert given_tokenizer.truncation is not None
    plain = tokenizer_of("byte level")
    assert plain_tokenizer(plain) is plain


def test_a_tokenizer_without_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer is a object, which does not tell where its tokens are"):
        PieceEncoder(object())
