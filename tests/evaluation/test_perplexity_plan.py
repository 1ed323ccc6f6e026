"""Documents are found in a fixed order, and which of their tokens are scored is known beforehand."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError, InputError
from recurrent_memory.evaluation.perplexity_plan import Choice, Plan, PlannedTokens
from recurrent_memory.inference import documents as documents_module
from recurrent_memory.inference.documents import Documents, open_documents
from tiny_models import END, prose, tiny_tokenizer


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A file, a zipped file in a folder, and rows, one of them empty."""
    folder = tmp_path / "books"
    (folder / "old").mkdir(parents=True)
    (folder / "b.txt").write_text(prose(30, 1), "utf-8")
    (folder / "old" / "c.txt.gz").write_bytes(gzip.compress(prose(3, 2).encode()))
    rows = [{"text": prose(2, seed), "path": str(seed)} for seed in (3, 4)]
    lines = [json.dumps(row) for row in [*rows, {"text": ""}]]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")
    return folder


def read(documents: Documents) -> list[tuple[str, str]]:
    return [(document.name, "".join(document.chunks())) for document in documents]


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def plan_of(source: Path, **choice: Any) -> Plan:
    return PlannedTokens(open_documents(source), tiny_tokenizer(), Choice(**choice)).plan


def test_documents_of_a_folder_in_order_each_time(books: Path) -> None:
    documents = open_documents(books)
    expected = [
        ("a.jsonl:1", prose(2, 3)),
        ("a.jsonl:2", prose(2, 4)),
        ("a.jsonl:3", ""),
        ("b.txt", prose(30, 1)),
        ("old/c.txt.gz", prose(3, 2)),
    ]
    assert read(documents) == expected == read(documents)
    assert read(open_documents(books / "b.txt")) == [("b.txt", prose(30, 1))]
    assert read(documents.joined()) == [(str(books), "".join(f"{text}\n" for _, text in expected if text))]


def test_documents_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(what: str, source: str, *args: str, **kwargs: object) -> Iterator[dict[str, str]]:
        asked.append((what, source, args, kwargs))
        yield from ({"text": " = Title = \n"}, {"text": "Words\n"})

    monkeypatch.setattr(documents_module, "hub_rows", rows)
    name = "Salesforce/wikitext:wikitext-2-raw-v1"
    documents = open_documents(name, "validation")
    assert read(documents) == [(f"{name}:1", " = Title = \n"), (f"{name}:2", "Words\n")]
    assert asked == [
        ("--text", "Salesforce/wikitext", ("wikitext-2-raw-v1",), {"split": "validation", "streaming": True})
    ]
    assert read(documents.joined()) == [(name, " = Title = \nWords\n")]


def test_a_plan_counts_tokens_words_and_bytes(books: Path) -> None:
    plan = plan_of(books)
    texts = [text for _, text in read(open_documents(books))]
    assert [d.num_tokens for d in plan.documents] == [len(ids_of(text)) for text in texts]
    assert [d.num_words for d in plan.documents] == [len(text.split()) for text in texts]
    assert [d.num_bytes for d in plan.documents] == [len(text.encode()) for text in texts]
    assert plan.num_scored == sum(max(0, len(ids_of(text)) - 1) for text in texts)
    assert plan.num_unscored == 4


def test_tokens_come_as_planned(books: Path) -> None:
    tokens = PlannedTokens(open_documents(books), tiny_tokenizer(), Choice())
    found = [(planned.number, feed.take(10_000).tolist()) for planned, feed in tokens.feeds(lambda d: d.number != 1)]
    texts = [text for _, text in read(open_documents(books))]
    assert found == [(number, ids_of(texts[number])) for number in (0, 3, 4)]


def test_limits(books: Path) -> None:
    whole = plan_of(books)
    first = plan_of(books, limit_documents=2)
    assert first.documents == whole.documents[:2]
    most = first.num_scored + 20
    cut = plan_of(books, max_tokens=most)
    assert cut.num_scored == most
    assert cut.documents[:3] == whole.documents[:3]
    last = cut.documents[3]
    text = tiny_tokenizer().decode(ids_of(prose(30, 1))[:21])
    assert len(cut.documents) == 4
    assert (last.num_tokens, last.num_words, last.num_bytes) == (21, len(text.split()), len(text.encode()))
    assert plan_of(books, max_tokens=first.num_scored).documents == first.documents
    assert plan_of(books, max_tokens=10**9) == whole


def test_a_limit_for_each_document(books: Path) -> None:
    whole = plan_of(books)
    cut = plan_of(books, max_document_tokens=7)
    assert [d.num_scored for d in cut.documents] == [min(7, d.num_scored) for d in whole.documents]
    assert sorted(d.num_scored for d in cut.documents) == [0, 7, 7, 7, 7]
    for (_, text), document in zip(read(open_documents(books)), cut.documents, strict=True):
        kept = tiny_tokenizer().decode(ids_of(text)[:8])
        assert (document.num_words, document.num_bytes) == (len(kept.split()), len(kept.encode()))
    both = plan_of(books, max_document_tokens=7, max_tokens=17)
    assert [d.num_scored for d in both.documents] == [7, 7, 0, 3]
    assert plan_of(books, max_document_tokens=10**9) == whole


def test_the_set_is_named_by_texts_places_and_what_is_scored(books: Path) -> None:
    names = [
        plan.scored_sha256
        for plan in (
            plan_of(books),
            plan_of(books, limit_documents=2),
            plan_of(books, max_tokens=50),
            plan_of(books, max_tokens=51),
            plan_of(books / "b.txt"),
            PlannedTokens(open_documents(books).joined(), tiny_tokenizer(), Choice()).plan,
        )
    ]
    assert len(set(names)) == len(names)
    assert plan_of(books).scored_sha256 == names[0]


def test_what_is_hashed(books: Path) -> None:
    whole = hashlib.sha256()
    for number, (_, text) in enumerate(read(open_documents(books))):
        digest = hashlib.sha256()
        for place, token in enumerate(ids_of(text)):
            digest.update(token.to_bytes(8, "little") + int(place > 0).to_bytes(8, "little"))
        whole.update(f"{number} {digest.hexdigest()}\n".encode())
    assert plan_of(books).scored_sha256 == whole.hexdigest()


def test_the_beginning_of_text(books: Path) -> None:
    with pytest.raises(ConfigError, match="--bos: the tokenizer has no beginning-of-text token"):
        plan_of(books, bos=True)
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = END
    tokens = PlannedTokens(open_documents(books), tokenizer, Choice(bos=True))
    texts = [text for _, text in read(open_documents(books))]
    assert [d.num_scored for d in tokens.plan.documents] == [len(ids_of(text)) for text in texts]
    assert tokens.plan.num_unscored == 0
    assert tokens.plan.scored_sha256 != plan_of(books).scored_sha256
    found = [feed.take(10_000).tolist() for _, feed in tokens.feeds(lambda _: True)]
    assert found == [[tokenizer.bos_token_id, *ids_of(text)] for text in texts if text]
    cut = PlannedTokens(open_documents(books), tokenizer, Choice(bos=True, max_tokens=4)).plan.documents[0]
    assert (cut.num_tokens, cut.num_bytes) == (5, len(tokenizer.decode(ids_of(texts[0])[:4]).encode()))


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "Mary"}\n{"text"\n')
    (tmp_path / "no.jsonl").write_text('{"body": "Mary"}\n')
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "lines.jsonl").write_text("\n\n")
    (tmp_path / "empty.txt").write_text("")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    for name, message in (
        ("bad.jsonl", "bad.jsonl, line 2: is not JSON"),
        ("no.jsonl", "no.jsonl, row 1: has no text in a column 'text'"),
        ("blank.jsonl", "none of its 1 documents has a token"),
        ("lines.jsonl", "holds no document"),
        ("empty.txt", "is empty"),
        ("missing", "no such path"),
    ):
        with pytest.raises(InputError, match=message):
            plan_of(tmp_path / name)
    with pytest.raises(InputError, match="standard input cannot be read twice"):
        open_documents("-")
    for name in ("max_tokens", "limit_documents", "max_document_tokens"):
        with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
            Choice(**{name: 0})
