"""A text in pieces, each tokenized with what stands before it, so that the whole comes out as if tokenized at once."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_PIECE_CHARS = 1 << 20
_CONTEXT_CHARS = (64, 512, 4096)
_COUNTS, _COUNTED_CHARS = 10_000, 200
_KEPT_CHARS = 8192

# Tokenizers split a text before a single space between two words, whatever else they do with white space.
_CUT = re.compile(r"(?<=\S)(?= [^\W_])")


def cut_pieces(chunks: Iterable[str], num_chars: int) -> Iterator[str]:
    """The same text in pieces of about `num_chars` characters, cut only before a single space between words.

    Raises:
        InputError: if there is no such place in a million characters, or a chunk is no text.

    Example:
        >>> list(cut_pieces(["Mary we", "nt to the garden."], 12))
        ['Mary went', ' to the', ' garden.']
    """
    buffer, wanted = "", num_chars
    for chunk in chunks:
        if not isinstance(chunk, str):
            raise InputError(f"noise has a {type(chunk).__name__} in it; give an iterable of strings")
        for start in range(0, len(chunk), _MAX_PIECE_CHARS):
            buffer += chunk[start : start + _MAX_PIECE_CHARS]
            done = 0
            while len(buffer) - done > wanted:
                cut = _last_cut(buffer, done, done + wanted)
                if cut is None:
                    if wanted > _MAX_PIECE_CHARS:
                        raise InputError(
                            f"noise has no space between words in {wanted} characters; give text with words"
                        )
                    wanted *= 2
                    continue
                yield buffer[done:cut]
                done, wanted = cut, num_chars
            buffer = buffer[done:]
    if buffer:
        yield buffer


def _last_cut(text: str, start: int, stop: int) -> int | None:
    at = text.rfind(" ", start + 1, stop)
    while at >= 0:
        if not text[at - 1].isspace() and text[at + 1 : at + 2].isalnum():
            return at
        at = text.rfind(" ", start + 1, at)
    return None


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a text and its tokens.

    Args:
        text: The piece.
        token_ids: Its tokens.
        starts: The first character of each, in the piece.
        ends: The character after the last of each.
    """

    text: str
    token_ids: list[int]
    starts: list[int]
    ends: list[int]

    def tokens_of(self, start: int, end: int) -> tuple[int, int]:
        """The first token with one of the characters `start … end`, and the token after the last."""
        return bisect_right(self.ends, start), bisect_left(self.starts, end)


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """The tokenizer inside a tokenizer, neither cutting nor padding; the caller's own stays as it is.

    Args:
        tokenizer: A fast tokenizer of `transformers`, or a `tokenizers.Tokenizer`.

    Raises:
        ConfigError: if it is neither.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(
            f"tokenizer is a {type(tokenizer).__name__}, which does not tell where its tokens are in a text; "
            "give a fast tokenizer of transformers or a tokenizers.Tokenizer"
        )
    if backend.truncation is not None or backend.padding is not None:  # some models' tokenizers cut at 128 tokens
        backend = Tokenizer.from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return backend


class PieceEncoder:
    """Tokenizes a text piece by piece. A piece is encoded (more than once, if need be), and one version is accepted.

    Args:
        tokenizer: A fast tokenizer of `transformers`, or a `tokenizers.Tokenizer`.

    Raises:
        ConfigError: if it is neither.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = plain_tokenizer(tokenizer)
        self._text = ""
        self._token_ids: list[int] = []
        self._counts: dict[str, int] = {}

    def count(self, text: str) -> int:
        """How many tokens a text of its own has; of short ones it is kept, since facts come again and again."""
        count = self._counts.get(text)
        if count is None:
            count = len(self._backend.encode(text, add_special_tokens=False).ids)
            if len(text) < _COUNTED_CHARS and len(self._counts) < _COUNTS:
                self._counts[text] = count
        return count

    def alone(self, text: str) -> Block:
        """A text of its own."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        starts, ends = (list(side) for side in zip(*encoding.offsets, strict=True)) if encoding.ids else ([], [])
        return Block(text, encoding.ids, starts, ends)

    def encode(self, text: str) -> Block:
        """Tokenize a piece as what follows on the pieces that were accepted.

        Raises:
            InputError: if this tokenizer cannot tokenize the text in pieces: the text before came out otherwise.
        """
        for num_chars in _CONTEXT_CHARS:
            match = _CUT.search(self._text, max(0, len(self._text) - num_chars))
            context = self._text[match.start() :] if match else self._text
            whole = self.alone(context + text)
            starts, ends, ids = whole.starts, whole.ends, whole.token_ids
            first = bisect_right(ends, len(context))
            # The first tokens of the context may differ: a tokenizer may put something before a text.
            known = (first + 1) // 2
            if ids[first - known : first] == self._token_ids[len(self._token_ids) - known :]:
                base = len(context)
                return Block(
                    text,
                    ids[first:],
                    [max(0, start - base) for start in starts[first:]],
                    [end - base for end in ends[first:]],
                )
        raise InputError(
            f"noise cannot be tokenized in pieces by this tokenizer near {text[:40]!r}; give another tokenizer or text"
        )

    def accept(self, block: Block) -> None:
        """Go on after a piece."""
        self._text += block.text
        self._token_ids += block.token_ids
        if len(self._text) > 2 * _KEPT_CHARS:
            match = _CUT.search(self._text, len(self._text) - _KEPT_CHARS)
            if match:
                self._text = self._text[match.start() :]
                self._token_ids = self._token_ids[-len(self._text) :]
