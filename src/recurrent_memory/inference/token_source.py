"""Whatever somebody gives to be read, as token ids."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..backbones.base import Backbone
from ..errors import InputError
from .sources import STDIN, iter_text, source_identity
from .token_feed import TokenFeed, as_ids, id_blocks, peeked, prefetched, without
from .tokenize_stream import TokenStreamer


class TokenSource:
    """One text: a file, a folder, standard input, pieces of text, or token ids.

    Args:
        source: See `MemoryReader`.
        streamer: Tokenizes; None where there is no tokenizer.
        encoding: Of files.
        backbone: What the tokens are for: some take special tokens out.
        expected_tokens: How many there are, if that is known.

    Raises:
        InputError: at once, if it is missing, empty, binary, wrongly encoded, or of a type that cannot be read.
    """

    def __init__(
        self,
        source: Any,
        streamer: TokenStreamer | None,
        encoding: str,
        backbone: Backbone,
        expected_tokens: int | None = None,
    ) -> None:
        self.name = "the text"
        self._encoding = encoding
        self._removed_ids = backbone.special_ids() if backbone.strips_special_tokens else ()
        self._paths: list[str | os.PathLike[str]] = []
        self._chunks: Iterator[str] | None = None
        self._ids: Iterator[Tensor] | None = None
        self._is_made_on_the_way = True
        self._streamer = streamer
        self._bytes_read = 0
        self._bytes_total: int | None = None
        self._tokens_total = expected_tokens
        self._open(source)
        if self._chunks is not None and streamer is None:
            raise InputError("text needs a tokenizer: MemoryReader(model, tokenizer); without one, give token ids")

    def _open(self, source: Any) -> None:
        if isinstance(source, bytes | bytearray | Mapping) or hasattr(source, "input_ids"):
            raise InputError(
                f"cannot read a {type(source).__name__}; give the name of a file, an iterator of str, or token ids "
                "(tokenizer(text)['input_ids'])"
            )
        if isinstance(source, str | os.PathLike):
            self._open_files([source])
        elif isinstance(source, list | tuple) and source and isinstance(source[0], str | os.PathLike):
            self._open_files(list(source))
        elif isinstance(source, io.TextIOBase):
            self._chunks = iter_text(source)  # pyright: ignore[reportArgumentType]
        elif hasattr(source, "shape"):
            self._ids, self._is_made_on_the_way = iter([as_ids(source)]), False
        elif isinstance(source, Iterable):
            first, items = peeked(source)
            if isinstance(first, str):
                self._chunks = iter_text(items)
            else:
                self._ids, self._is_made_on_the_way = id_blocks(items), not isinstance(source, list | tuple)
        else:
            raise InputError(
                f"cannot read a {type(source).__name__}; give the name of a file, an iterator of str, or token ids"
            )

    def _open_files(self, paths: list[str | os.PathLike[str]]) -> None:
        self._paths = paths
        self.name = ", ".join("standard input" if path == STDIN else str(path) for path in paths[:3])
        self._chunks = iter_text(paths, encoding=self._encoding)
        files = [path for path in paths if os.path.isfile(path) and not str(path).endswith(".gz")]
        if len(files) == len(paths):
            self._bytes_total = sum(map(os.path.getsize, files))

    def identity(self) -> dict[str, Any] | None:
        """What identifies the files; None where they cannot be looked at beforehand (a pipe, an iterator)."""
        if not self._paths or STDIN in self._paths:
            return None
        found = source_identity(self._paths, encoding=self._encoding)
        if any(file["sha256"] is None for file in found["files"]):
            return None
        if not any(file["name"].endswith(".gz") for file in found["files"]):
            self._bytes_total = sum(file["size"] for file in found["files"])
        return found

    def fraction(self, tokens: int) -> float | None:
        """How much of the text `tokens` are, if its length, or the size of its files, is known."""
        if self._tokens_total:
            return min(1.0, tokens / self._tokens_total)
        return min(1.0, self._bytes_read / self._bytes_total) if self._bytes_total else None

    def feed(self, *, in_background: bool = True) -> TokenFeed:
        """The tokens. An iterator is drawn on, and text tokenized, by another thread, if wanted. To be called once."""
        if self._chunks is not None and self._streamer is not None:
            blocks: Iterator[Int[Tensor, " T"]] = map(as_ids, self._streamer.stream(self._counted(self._chunks)))
        else:
            blocks = self._ids or iter(())
        if self._removed_ids:
            blocks = without(blocks, self._removed_ids)
        if self._is_made_on_the_way and in_background:
            blocks = prefetched(blocks)
        return TokenFeed(blocks)

    def _counted(self, chunks: Iterator[str]) -> Iterator[str]:
        for chunk in chunks:
            # The size of what has been read; that of what has been decoded is not known more exactly.
            if self._bytes_total:
                self._bytes_read += len(chunk) if chunk.isascii() else len(chunk.encode(self._encoding, "replace"))
            yield chunk
