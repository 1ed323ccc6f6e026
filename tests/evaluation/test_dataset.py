"""Given texts are read and asked as `read` and `ask` do."""

from __future__ import annotations

import torch

from recurrent_memory.evaluation.dataset import read_and_ask
from recurrent_memory.inference.asking import ask
from recurrent_memory.tasks.babilong import LongSample
from recurrent_memory.tasks.scoring import exact_match
from tiny_models import S, prose, tiny_model, tiny_tokenizer


def test_every_text_is_asked_its_own_question_in_order() -> None:
    torch.set_num_threads(1)
    model, tokenizer = tiny_model().double(), tiny_tokenizer()
    people = ("Mary", "John", "Sandra", "Zoë", "Mary")
    samples = [
        LongSample(prose(length, length), f"Where is {who}?", "garden")
        for length, who in zip((9, 1, 30, 2, 16), people, strict=True)
    ]
    done: list[int] = []
    rows = read_and_ask(
        model, tokenizer, samples, 1_000, lambda answer, s: exact_match(answer, s.target), lanes=2, tell=done.append
    )
    assert done == [1, 2, 3, 4, 5]
    for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        ids = tokenizer(sample.input, return_tensors="pt").input_ids
        kept = ask(model, tokenizer, model.read(ids), [sample.question])[0]
        tail = ids[:, (ids.shape[1] - 1) // S * S :]
        reset = ask(model, tokenizer, model.read(tail), [sample.question])[0]
        assert (row.sample, row.question, row.length) == (number, sample.question, 1_000)
        assert (row.answer, row.reset_answer) == (kept.text, reset.text)
        assert row.probability == round(kept.probability, 6)
