"""Runs of text: consecutive, of one document, each predicted where it is to be."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurrent_memory.errors import InputError
from recurrent_memory.inference import documents as documents_module
from recurrent_memory.training.examples import collate
from recurrent_memory.training.text_examples import TextExamples, load_token_documents
from recurrent_memory.training.text_recipe import TextRecipe
from recurrent_memory.training.unroll import Unrolling
from tiny_models import S, prose, tiny_model, tiny_tokenizer

IGNORE = -100
# Their tokens tell which document they are of. The shortest has nothing to predict.
DOCUMENTS = [np.arange(100, 130), np.arange(200, 201), np.arange(300, 307), np.arange(400, 412)]


class Counting(random.Random):
    """Draws every number in turn; `limit` is how many there are."""

    def __init__(self, number: int) -> None:
        self.number, self.limit = number, 0

    def randrange(self, limit: int) -> int:  # type: ignore[override]
        self.limit = limit
        return self.number


def all_runs(examples: TextExamples, num_segments: int) -> list[list[int]]:
    first = Counting(0)
    examples.draw(first, num_segments)
    return [examples.draw(Counting(number), num_segments)["input_ids"] for number in range(first.limit)]


def test_every_run_of_every_document_is_drawn_once() -> None:
    expected = [list(range(start, start + 12)) for start in range(100, 119)]
    expected += [list(range(300, 307)), list(range(400, 412))]  # shorter than a run: one run, whole
    assert all_runs(TextExamples(DOCUMENTS, 4), 3) == expected


def test_the_same_numbers_draw_the_same_run() -> None:
    examples = TextExamples(DOCUMENTS, 4)
    drawn = [examples.draw(random.Random(seed), 2)["input_ids"] for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("loss_from_segment", "length", "num_skipped"),
    [(1, 12, 1), (2, 12, 5), (3, 12, 9), (9, 12, 9), (2, 3, 1), (3, 9, 5), (3, 10, 9)],
)
def test_labels_begin_with_a_segment(loss_from_segment: int, length: int, num_skipped: int) -> None:
    ids = list(range(length))
    example = TextExamples([np.asarray(ids)], 4, loss_from_segment).draw(random.Random(0), 3)
    assert example["input_ids"] == ids
    assert example["labels"] == [IGNORE] * num_skipped + ids[num_skipped:]


def test_the_loss_is_of_the_segments_that_predict() -> None:
    ids = np.arange(3 * S)
    for first in (1, 2, 3):
        batch = collate([TextExamples([ids], S, first).draw(random.Random(0), 3)])
        text = Unrolling(tiny_model(), batch["input_ids"], batch["labels"])
        assert text.has_loss == [index + 1 >= first for index in range(3)]
        assert text.num_labels == 3 * S - 1 - (first - 1) * S


@pytest.fixture
def books(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(prose(20 + number, number), "utf-8")
    return tmp_path


def test_texts_become_tokens(books: Path) -> None:
    tokenizer: Any = tiny_tokenizer()
    expected = [tokenizer(prose(20 + number, number))["input_ids"] for number in range(3)]
    found = load_token_documents([str(books)], "train", tokenizer, what="text.train")
    assert [ids.tolist() for ids in found] == expected
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
    (joined,) = load_token_documents([str(books)], "train", tokenizer, what="text.train", join=True)
    text = "".join(f"{prose(20 + number, number)}\n" for number in range(3))
    assert joined.tolist() == tokenizer(text)["input_ids"]
    most = len(expected[0]) + 5
    cut = load_token_documents([str(books)], "train", tokenizer, what="text.train", max_tokens=most)
    assert [ids.tolist() for ids in cut] == [expected[0], expected[1][:5]]


def test_a_recipe_names_both_texts_and_their_splits(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def rows(what: str, source: str, *args: Any, split: str, **kwargs: Any) -> Any:
        asked.append((what, split))
        return iter([{"text": prose(5)}])

    monkeypatch.setattr(documents_module, "hub_rows", rows)
    recipe = TextRecipe.model_validate(
        {"train": f"{books}, owner/texts", "valid": "owner/texts", "loss_from_segment": 2}
    )
    assert recipe.train == (str(books), "owner/texts")
    train, valid = recipe.examples(tiny_tokenizer(), 8)
    assert (len(train.documents), len(valid.documents)) == (4, 1)
    assert asked == [("text.train", "train"), ("text.valid", "validation")]
    assert (train.segment_length, valid.loss_from_segment) == (8, 2)
    assert valid.num_tokens == len(tiny_tokenizer()(prose(5))["input_ids"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextExamples([np.arange(1), np.arange(0)], 4), "none of the 2 documents has a token that another one"),
        (
            lambda: TextRecipe().examples(tiny_tokenizer(), 4),
            "text.train is empty: name a text, such as text.train=path",
        ),
        (lambda: TextRecipe(train=("no.txt",)).examples(tiny_tokenizer(), 4), "text.train no.txt: no such path"),
    ],
)
def test_what_is_missing_is_named(make: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=message):
        make()


def test_a_text_read_by_segments_is_learned_from_whole() -> None:
    """The sum of what every token costs, shifted once, across the boundaries of segments too."""
    model, ids = tiny_model(), np.arange(2 * S + 5)
    batch = collate([TextExamples([ids], S).draw(random.Random(0), 3)])
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"])
        nll = torch.nn.functional.cross_entropy(output.logits[0, :-1], batch["input_ids"][0, 1:])
        loss = model(**batch).loss
    torch.testing.assert_close(loss, nll)
