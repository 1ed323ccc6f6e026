"""The demonstration hides, reads once, asks, and tells the truth about it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from recurrent_memory.errors import InputError
from recurrent_memory.evaluation.demonstration import _token_ids, demonstrate, kv_cache_bytes
from recurrent_memory.evaluation.demonstration_chart import draw
from recurrent_memory.inference.asking import ask
from recurrent_memory.tasks.hiding import hide_stream
from recurrent_memory.tasks.library_text import library_text
from recurrent_memory.tasks.whereabouts import Fact
from tiny_models import prose, tiny_model, tiny_tokenizer


def test_what_is_read_is_the_text_with_the_facts_in_it() -> None:
    tokenizer, inserts = (
        tiny_tokenizer(),
        [(100, Fact("Mary", "garden", "went to")), (5_000, Fact("John", "office", "moved to"))],
    )
    ids = [i for part in _token_ids(tokenizer, None, inserts, 9_000) for i in part]
    text = "".join(hide_stream(islice(library_text(), 3), [(p, f.sentence) for p, f in inserts]))
    assert "Mary went to the garden." in text
    assert ids[:3_000] == tokenizer(text[:40_000], add_special_tokens=False)["input_ids"][:3_000]
    assert len(ids) == 9_000


@pytest.mark.parametrize("questions", [3, 6])
def test_each_person_is_asked_of_a_memory_that_read_every_token(questions: int) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    shown = demonstrate(model, tokenizer, tokens=700, questions=questions, seed=3)
    assert (shown.tokens, shown.questions, len(shown.asked)) == (700, questions, questions)
    assert {item.text for item in shown.asked} == set(range(-(-questions // 4)))
    assert shown.accuracy == sum(item.right for item in shown.asked) / questions
    assert shown.full_attention_kv_bytes == 2 * 2 * 16 * 4 * 700
    first = shown.asked[0]
    facts = [item.sentence for item in shown.asked if item.text == 0]
    assert len(set(facts)) == len(facts)
    assert ask(model, tokenizer, model.read(torch.tensor([[5, 6]])), [first.question])[0].question == first.question


def test_a_file_shorter_than_asked_for_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(prose(60))
    shown = demonstrate(tiny_model(), tiny_tokenizer(), tokens=1_000_000, text=path, questions=1)
    assert 64 <= shown.tokens < 5_000


def test_bad_numbers_are_named(tmp_path: Path) -> None:
    for wrong in ({"tokens": 3}, {"questions": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            demonstrate(tiny_model(), tiny_tokenizer(), **wrong)
    (tmp_path / "tiny.txt").write_text("too short")
    with pytest.raises(InputError, match="too few to hide a fact in"):
        demonstrate(tiny_model(), tiny_tokenizer(), text=tmp_path / "tiny.txt")


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    shown = demonstrate(tiny_model(), tiny_tokenizer(), tokens=300, questions=2)
    draw(shown, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_keys_and_values_are_counted_by_heads() -> None:
    assert kv_cache_bytes(tiny_model(), 1) == 2 * 2 * 16 * 4
