"""Text out of tokens one by one is the text of all of them, and never half a character."""

import random

import pytest

from recurrent_memory.inference.detokenize import IncrementalDecoder, eos_ids
from tiny_models import tiny_model, tiny_tokenizer

TEXTS = [
    "Mary went to the garden.",
    " Zoë — naïve café; 日本語 👩‍👩‍👧 \U0001f9ff\n\n\tend ",
    "a real replacement \ufffd character, and another \ufffd",
    "👩" * 300,
]


def pieces_of(ids: list[int], context: list[int] | None = None) -> list[str]:
    decoder = IncrementalDecoder(tiny_tokenizer(), context)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text(text: str) -> None:
    ids = tiny_tokenizer()(text)["input_ids"]
    pieces = pieces_of(ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids) + 1


def test_a_character_comes_when_it_is_whole() -> None:
    ids = tiny_tokenizer()("日")["input_ids"]
    assert len(ids) == 3
    assert pieces_of(ids) == ["", "", "日", ""]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_context_is_not_repeated(cut: int) -> None:
    ids = tiny_tokenizer()("garden 日本")["input_ids"]
    whole = tiny_tokenizer().decode(ids)
    shown = tiny_tokenizer().decode(ids[:-cut]).rstrip("\ufffd")
    assert shown + "".join(pieces_of(ids[-cut:], ids[:-cut])) == whole


def test_bytes_that_are_no_text_come_in_the_end_and_hold_up_nothing() -> None:
    rng = random.Random(0)
    ids = [rng.randrange(1, 257) for _ in range(500)]  # the alphabet: single bytes, most of which are not UTF-8
    decoder = IncrementalDecoder(tiny_tokenizer())
    shown = 0
    for number, token in enumerate(ids, 1):
        shown += len(decoder.push(token))
        assert (
            len(tiny_tokenizer().decode(ids[:number])) - shown <= 3 + number // 64 * 3
        )  # the context may be cut in a character
    assert len(decoder._ids) <= 64


def test_the_tokens_that_end_a_text() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [0, 7]
    assert eos_ids(model, tiny_tokenizer()) == {0, 7}
