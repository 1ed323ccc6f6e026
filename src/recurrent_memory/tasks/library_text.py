"""Real text on every machine with Python: the language reference, the library's documentation and sources."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

_SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"})
_SUFFIXES = (".py", ".txt", ".rst")
_LAST = "encodings"  # tables of code points, generated, hardly a text: only when all the rest is used up


def library_files() -> list[Path]:
    """Text files of the standard library, in the order that they are read."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED]  # not entered: packages are many files
        found += [Path(folder, name) for name in names if name.endswith(_SUFFIXES)]
    return sorted(found, key=lambda path: (path.relative_to(root).parts[0] == _LAST, path.relative_to(root).as_posix()))


def library_text() -> Iterator[str]:
    """The language reference first, then file after file."""
    try:
        from pydoc_data import topics as reference
    except ImportError:
        reference = None
    topics: dict[str, str] = reference.topics if reference is not None else {}
    for name in sorted(topics):
        yield topics[name] + "\n"
    for path in library_files():
        try:
            yield path.read_text(encoding="utf-8") + "\n"
        except (OSError, UnicodeDecodeError):
            continue


def take_text(num_chars: int) -> str:
    """The first `num_chars` characters of `library_text`, from the start again if that is not enough.

    Raises:
        InputError: if this Python has no library text.
    """
    pieces: list[str] = []
    total = 0
    while total < num_chars:
        before = total
        for piece in library_text():
            pieces.append(piece)
            total += len(piece)
            if total >= num_chars:
                break
        if total == before:
            raise InputError("this Python has neither pydoc_data nor library sources; give the text with --text FILE")
    return "".join(pieces)[:num_chars]


def text_hash(text: str) -> str:
    """SHA-256 of a text, to name it in results."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
