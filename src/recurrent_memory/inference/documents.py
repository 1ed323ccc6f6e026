"""Texts to be read one by one: the files of a folder, the rows of a .jsonl file, the rows of a dataset on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..hub import hub_rows
from .sources import STDIN, iter_text, source_identity

COLUMN = "text"
_ROWS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Args:
        name: Its file, or its row.
        chunks: Goes through it once, from its start.
    """

    name: str
    chunks: Callable[[], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts in an order that is the same each time.

    Args:
        name: Where they come from.
        open: Goes through them once.
        identity: What the files are, for the record; the hub's dataset by its name.
    """

    name: str
    open: Callable[[], Iterator[Document]]
    identity: Mapping[str, Any]

    def __iter__(self) -> Iterator[Document]:
        return self.open()

    def joined(self) -> Documents:
        """All of them as one text, each ended by a newline if it does not end with one.

        For a source whose rows are the lines of a text, such as WikiText on the hub.
        """

        def chunks() -> Iterator[str]:
            for document in self:
                last = ""
                for chunk in document.chunks():
                    yield chunk
                    last = chunk or last
                if last and not last.endswith("\n"):
                    yield "\n"

        return replace(self, open=lambda: iter([Document(self.name, chunks)]))


def open_documents(source: str | Path, split: str = "test", what: str = "--text") -> Documents:
    """Find the documents of a source.

    Args:
        source: A text file (`.gz` too) is one document. Of a folder every file is one, in the order of their paths. Of a
            `.jsonl` file every row is one, its text in the column `text`; so for the id of a dataset on the hub, with a
            configuration after a colon where it needs one: `Salesforce/wikitext:wikitext-2-raw-v1`.
        split: Of a dataset on the hub.
        what: The setting that names the source, for errors.

    Raises:
        InputError: if it is missing, empty, or not text.

    Example:
        >>> [document.name for document in open_documents("books")]
        ['emma.txt', 'ulysses.txt.gz']
    """
    name = str(source)
    if name == STDIN:
        raise InputError(f"{what} -: standard input cannot be read twice; give a file or a folder")
    path = Path(name).expanduser()
    if path.exists():
        identity = source_identity(path)
        if any(file["sha256"] is None for file in identity["files"]):
            raise InputError(f"{what} {name}: is a pipe and cannot be read twice; give a file or a folder")
        files = [(path / file["name"] if path.is_dir() else path, file["name"]) for file in identity["files"]]
        return Documents(name, lambda: _of_files(files), identity)
    dataset, _, configuration = name.partition(":")
    arguments = [configuration] if configuration else []

    def rows() -> Iterator[Document]:
        return _of_rows(name, hub_rows(what, dataset, *arguments, split=split, streaming=True))

    return Documents(name, rows, {"hub": name, "split": split})


def _of_files(files: Iterable[tuple[Path, str]]) -> Iterator[Document]:
    for path, name in files:
        if name.endswith(_ROWS):
            yield from _of_rows(name, _json_rows(path))
        else:
            yield Document(name, lambda path=path: iter_text(path))


def _of_rows(name: str, rows: Iterable[Any]) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        text = row.get(COLUMN) if isinstance(row, Mapping) else None
        if not isinstance(text, str):
            raise InputError(f"{name}, row {number}: has no text in a column {COLUMN!r}; give rows that have")
        yield Document(f"{name}:{number}", lambda text=text: iter([text]))


def _json_rows(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_lines(iter_text(path)), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: is not JSON ({error}); give one object a line") from error


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    begun: list[str] = []
    for chunk in chunks:
        *ended, rest = chunk.split("\n")
        for line in ended:
            yield "".join([*begun, line])
            begun = []
        begun.append(rest)
    yield "".join(begun)
