"""The text that facts are hidden in while evaluating: as long as is asked for, from any place on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..hub import hub_rows
from ..inference.sources import iter_text
from .library_text import library_text

LIBRARY = "python"
_MIN_CHARS = 1000


@dataclass(frozen=True, slots=True)
class NoiseSource:
    """A text that begins again where it ends.

    Args:
        name: What it was made from.
        chunks: Goes through it once, from its start.
        num_chars: Its length.
        sha256: Of the whole text.
    """

    name: str
    chunks: Callable[[], Iterator[str]]
    num_chars: int
    sha256: str

    def from_char(self, start: int) -> Iterator[str]:
        """The text from a character on, without end."""
        left = start % self.num_chars
        for chunk in itertools.chain.from_iterable(self.chunks() for _ in itertools.count()):
            if left < len(chunk):
                yield chunk[left:]
                left = 0
            else:
                left -= len(chunk)


def open_noise(source: str | None = None) -> NoiseSource:
    """Look at a text once, for its length and its hash.

    Args:
        source: A file, a folder, or the id of a dataset on the hub with a `text` column; None or "python": the language
            reference and the sources of Python's standard library, which are on every machine with Python.

    Raises:
        InputError: if it cannot be read, or is shorter than 1,000 characters.
    """
    name = LIBRARY if source is None else source

    def chunks() -> Iterator[str]:
        if name == LIBRARY and not Path(LIBRARY).exists():
            return library_text()
        if Path(name).expanduser().exists():
            return iter_text(Path(name).expanduser())
        return (f"{row['text']}\n" for row in hub_rows("--noise", name, split="train", streaming=True))

    digest, num_chars = hashlib.sha256(), 0
    for chunk in chunks():
        digest.update(chunk.encode("utf-8", "surrogatepass"))
        num_chars += len(chunk)
    if num_chars < _MIN_CHARS:
        raise InputError(f"noise {name}: has {num_chars} characters; give text of at least {_MIN_CHARS:,}")
    return NoiseSource(name, chunks, num_chars, digest.hexdigest())
