"""What a tokenizer makes of one window of a text: tokens with their places, and how far its decisions reach."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import category

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "A b,  it's\n\n 12 é中 😀 "
CACHED_WORDS = 2000
"""Words whose tokens BPE keeps. With its own 10,000 it goes on to take memory for the first hundreds of thousands of
tokens, 3 MB, and is slower: words that come late are seldom seen again, and are not worth their entry."""

_JOINS_THE_ONE_BEFORE = ("M", "Cf", "Sk", "Lm")  # categories of characters that a normalizer may join


@dataclass(frozen=True, slots=True)
class KnownToken:
    """A token of the text that is certain, and its place in the text."""

    id: int
    start: int
    end: int
    is_boundary: bool
    is_word_start: bool


@dataclass(frozen=True, slots=True)
class WindowTokens:
    """Token ids, with the characters and the word (pre-token) of each; positions are those in the text."""

    ids: list[int]
    spans: list[tuple[int, int]]  # in what was encoded: the anchor and the window
    words: list[int | None]
    left: int  # where the window begins in the text
    num_anchor_chars: int  # put before the window

    def __len__(self) -> int:
        return len(self.ids)

    def start(self, i: int) -> int:
        """Position of the first character of token i."""
        return self.spans[i][0] + self.left - self.num_anchor_chars

    def end(self, i: int) -> int:
        """Position after the last character of token i."""
        return self.spans[i][1] + self.left - self.num_anchor_chars

    def is_boundary(self, i: int) -> bool:
        """Whether no character belongs to tokens on both sides of the boundary before token i."""
        return i == 0 or self.spans[i - 1][1] <= self.spans[i][0]

    def is_word_start(self, i: int) -> bool:
        """Whether a word begins with token i; unknown, hence False, of the first."""
        return i > 0 and self.words[i] != self.words[i - 1] and self.is_boundary(i)

    def num_words_after(self, i: int) -> int:
        """Number of words that begin after the word of token i."""
        return (self.words[-1] or 0) - (self.words[i] or 0)

    def first_at(self, position: int) -> int:
        """Index of the first token that begins at `position` or after it."""
        return bisect_left(self.spans, position - self.left + self.num_anchor_chars, key=lambda span: span[0])

    def last_at(self, position: int) -> int:
        """Index of the last token that begins at `position` or before it; -1 if there is none."""
        return bisect_right(self.spans, position - self.left + self.num_anchor_chars, key=lambda span: span[0]) - 1

    def known(self, first: int, last: int) -> list[KnownToken]:
        """Tokens first...last-1, which turned out to be certain."""
        return [
            KnownToken(self.ids[i], self.start(i), self.end(i), self.is_boundary(i), self.is_word_start(i))
            for i in range(first, last)
        ]

    def index_after(self, known: Sequence[KnownToken], position: int) -> int | None:
        """Index of the first token at `position` or after it, if those before end with the `known` ones, else None."""
        index = self.first_at(position)
        first = index - len(known)
        if first < 0 or (index > 0 and self.end(index - 1) > position):
            return None
        for i, token in enumerate(known, start=first):
            if self.ids[i] != token.id or self.start(i) != token.start or self.end(i) != token.end:
                return None
        return index


@dataclass(frozen=True, slots=True)
class WindowEncoder:
    """A fast tokenizer without special tokens, truncation and padding, and how far its decisions reach."""

    backend: Tokenizer
    name: str
    longest: int  # characters of the longest entry of the vocabulary
    reach: int  # characters of the longest added token, which a window may end in the middle of
    is_local: bool  # BPE: tokens on both sides of a boundary do not depend on each other
    strip_before: tuple[str, ...]  # added tokens that take the white space before them

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> WindowEncoder | None:
        """The encoder of a tokenizer; None if it is a slow one, or has Python code of its own that changes the ids."""
        from tokenizers.models import BPE

        if not tokenizer.is_fast:
            return None
        backend = _plain_backend(tokenizer)
        numbered = backend.get_added_tokens_decoder()
        added = numbered.values()
        model = backend.model
        if isinstance(model, BPE):
            _bound_cache(model)
        encoder = cls(
            backend=backend,
            name=str(tokenizer.name_or_path or type(tokenizer).__name__),
            longest=max(map(len, backend.get_vocab()), default=1),
            reach=max((len(token.content) for token in added), default=0),
            is_local=isinstance(model, BPE)
            and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix),
            strip_before=tuple(sorted({token.content for token in added if token.lstrip})),
        )
        expected = tokenizer(_SAMPLE, add_special_tokens=False, verbose=False)["input_ids"]
        return encoder if encoder.ids(_SAMPLE) == expected and numbered == tokenizer.added_tokens_decoder else None

    @property
    def context(self) -> int:
        """Characters of overlap in which a window has to fall into step with the text."""
        return max(64, 2 * self.longest)

    def tokens(self, texts: Sequence[str], left: int, anchor: str) -> Iterator[WindowTokens]:
        """The tokens of each text, which begins at `left` in the whole text, with the anchor put before it."""
        encodings = self.backend.encode_batch([anchor + text for text in texts], add_special_tokens=False)
        return (WindowTokens(e.ids, e.offsets, e.word_ids, left, len(anchor)) for e in encodings)

    def ids(self, text: str) -> list[int]:
        """The token ids of a text."""
        return self.backend.encode(text, add_special_tokens=False).ids


def _bound_cache(model: BPE) -> None:
    """Keep fewer words, also in the tokenizer that was given, whose model this is. The ids are the same."""
    resize = getattr(model, "_resize_cache", None)
    if resize is not None:
        resize(CACHED_WORDS)


def may_begin(text: str, position: int) -> bool:
    """Whether no normalizer could join the character at `position` with the one before."""
    char = text[position]
    return char.isascii() or not (category(char).startswith(_JOINS_THE_ONE_BEFORE) or _is_jamo_or_flag(char))


def _is_jamo_or_flag(char: str) -> bool:
    """Parts of Hangul syllables, and of flags, which join in pairs."""
    return "\u1160" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7ff" or "\U0001f1e6" <= char <= "\U0001f1ff"


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A tokenizer that shares this one's vocabulary, but not its truncation, its padding and its trimmed offsets."""
    from tokenizers import Tokenizer

    original: Any = tokenizer.backend_tokenizer
    plain = Tokenizer(original.model)
    if original.normalizer is not None:
        plain.normalizer = original.normalizer
    if original.pre_tokenizer is not None:
        plain.pre_tokenizer = original.pre_tokenizer
    added = original.get_added_tokens_decoder()
    plain.add_tokens([added[i] for i in sorted(added)])
    plain.encode_special_tokens = tokenizer.split_special_tokens
    return plain
