"""The model that comes with the package: small, lossless, and good for what it is shipped for."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from recurrent_memory.evaluation.composite import NoiseText
from recurrent_memory.evaluation.whereabouts import Job, run_job
from recurrent_memory.models import load_model, shipped_model_path
from recurrent_memory.tasks.library_text import library_text, take_text


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(shipped_model_path())


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return load_model()


def test_it_is_at_most_6_mb_of_safetensors_and_json() -> None:
    files = [path for path in shipped_model_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert {path.suffix for path in files} == {".safetensors", ".json"}


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=100))
def test_its_vocabulary_is_lossless(text: str) -> None:
    assert _tokenizer().decode(_tokenizer()(text)["input_ids"]) == text


def test_a_token_is_at_least_three_bytes_of_the_demos_text() -> None:
    text = take_text(1_000_000)
    assert len(text.encode()) / len(_tokenizer()(text)["input_ids"]) >= 3
    pieces = "".join(islice((piece[:2_000] for piece in library_text()), 0, None, 5))
    assert len(pieces.encode()) / len(_tokenizer()(pieces)["input_ids"]) >= 3


def test_it_answers_about_facts_hidden_in_the_demos_text(shipped: tuple[Any, Any]) -> None:
    model, tokenizer = shipped
    noise = NoiseText(take_text(60_000), tokenizer)
    rows = run_job(Job("anywhere", 128, 30, 11), model, tokenizer, noise)
    assert sum(row["right"] for row in rows) >= 24
    rows = run_job(Job("anywhere", 4_096, 30, 11), model, tokenizer, noise)
    assert sum(row["right"] for row in rows) >= 27


def test_its_memory_is_a_few_kilobytes(shipped: tuple[Any, Any]) -> None:
    model, _ = shipped
    assert model.read(torch.zeros(1, 1_000, dtype=torch.long)).num_bytes < 10_000
