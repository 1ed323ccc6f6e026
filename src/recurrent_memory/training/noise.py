"""The text that facts are hidden in while training: any folder, file, or dataset of the Hugging Face hub."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..hub import hub_rows

TEXT_SUFFIXES = frozenset(
    {
        ".txt",
        ".md",
        ".rst",
        ".py",
        ".pyi",
        ".tex",
        ".lean",
        ".html",
        ".c",
        ".h",
        ".cpp",
        ".java",
        ".js",
        ".jsonl",
        ".csv",
    }
)
MIN_DOCUMENT_CHARS = 200


_TESTS = re.compile(r"(?:^|[^a-z])(?:unit)?tests?(?:[^a-z]|$)")


def load_noise(sources: Sequence[str], max_chars: int, seed: int) -> list[list[str]]:
    """Documents of each source, at most `max_chars` in all, shared evenly and drawn at random.

    Args:
        sources: Folders, files, or ids of datasets with a `text` column.
        max_chars: The budget over all sources.
        seed: Draws which files are taken when there are more than fit.

    Returns:
        One list of documents a source.

    Raises:
        InputError: if a source is neither a path nor a dataset that can be loaded, or has no text.
    """
    if not sources:
        raise InputError(
            "noise is empty: give the recipe texts to hide facts in, such as noise=path/to/texts (a folder or a hub id)"
        )
    share = max_chars // len(sources)
    return [_load(source, share, seed + index) for index, source in enumerate(sources)]


def _load(source: str, max_chars: int, seed: int) -> list[str]:
    path = Path(source).expanduser()
    documents = _from_path(path, max_chars, seed) if path.exists() else _from_hub(source, max_chars)
    if not documents:
        raise InputError(
            f"noise {source}: no text of at least {MIN_DOCUMENT_CHARS} characters is there; "
            "give another folder or dataset"
        )
    return documents


def _is_of_tests(folder: Sequence[str]) -> bool:
    """Whether a folder inside the one that is named is of tests: `tests`, `test_mail`, `test/libregrtest`, and not `latest`."""
    return bool(folder) and "test" in folder[-1] and any(_TESTS.search(name) for name in folder)


def _from_path(path: Path, max_chars: int, seed: int) -> list[str]:
    if path.is_file():
        files = [path]
    else:
        files = sorted(
            p
            for p in path.rglob("*")
            if p.suffix.lower() in TEXT_SUFFIXES and not _is_of_tests(p.parent.relative_to(path).parts) and p.is_file()
        )
    random.Random(seed).shuffle(files)
    documents: list[str] = []
    total = 0
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) < MIN_DOCUMENT_CHARS:
            continue
        documents.append(text[: max_chars - total])
        total += len(documents[-1])
        if total >= max_chars:
            break
    return documents


def _from_hub(name: str, max_chars: int) -> list[str]:
    documents: list[str] = []
    total = 0
    for row in hub_rows("noise", name, split="train", streaming=True):
        if "text" not in row:
            raise InputError(f"noise {name}: has no column `text` (it has {', '.join(row)}); give another dataset")
        if len(row["text"]) >= MIN_DOCUMENT_CHARS:
            documents.append(row["text"][: max_chars - total])
            total += len(documents[-1])
        if total >= max_chars:
            break
    return documents
