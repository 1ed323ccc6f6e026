"""A text without end of which only a window is kept, and a text that is it but for sentences put in.

Around a sentence that is put in the few tokens that change are tokenized anew. What comes out is the tokenization of the whole text
with its sentences.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from .hiding import word_ends
from .pieces import PieceEncoder, cut_pieces

Boundary = Literal["sentence", "word"]
"""Whether a sentence may be put after any sentence of the text, or any word."""

SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*(?=\s)|\S(?=\s*\n\s*\n)""")
SENTENCE_REACH_CHARS = 1000

LOOK_AHEAD_TOKENS = 2048
"""So many tokens before its place, at the most, a text begins to differ from its noise."""

_PIECE_CHARS = 8192
_CONTEXT_TOKENS = (48, 192, 768)
_COMPARED_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Insert:
    """The tokens `low … high` of the noise are replaced.

    Args:
        low: A token of the noise.
        high: A token of the noise.
        ids: What stands in their place.
        spans: `(first token, token after the last)` of each sentence, counted from `low`.
    """

    low: int
    high: int
    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]


class NoiseWindow:
    """The token ids of a text, a window at a time.

    Args:
        chunks: The text, cut anywhere.
        tokenizer: A fast tokenizer of `transformers`, or a `tokenizers.Tokenizer`.
        piece_chars: How much of the text is tokenized at a time.

    Attributes:
        first: The first token that is kept.
        stop: The token after the last that is known so far.

    Raises:
        ConfigError: if the tokenizer does not tell where its tokens are in a text.
    """

    def __init__(self, chunks: Iterable[str], tokenizer: Any, piece_chars: int = _PIECE_CHARS) -> None:
        self._encoder = PieceEncoder(tokenizer)
        self._pieces = cut_pieces(chunks, piece_chars)
        self._ids = np.empty(0, dtype=np.int64)
        self._starts = np.empty(0, dtype=np.int64)  # characters, counted from the start of `_text`
        self._text = ""
        self.first = 0

    @property
    def stop(self) -> int:
        """The token after the last that is known so far."""
        return self.first + len(self._ids)

    def extend(self, stop: int) -> None:
        """Get to know the tokens before `stop`.

        Raises:
            InputError: if the text ends before.
        """
        ids, starts, text, known = [self._ids], [self._starts], [self._text], self.stop
        length = len(self._text)
        while known < stop:
            piece = next(self._pieces, "")
            if not piece:
                raise InputError(f"noise has {known} tokens, too few; give more text")
            block = self._encoder.encode(piece)
            self._encoder.accept(block)
            ids.append(np.asarray(block.token_ids, dtype=np.int64))
            starts.append(np.asarray(block.starts, dtype=np.int64) + length)
            text.append(piece)
            length += len(piece)
            known += len(block.token_ids)
        if len(ids) > 1:
            self._ids, self._starts, self._text = np.concatenate(ids), np.concatenate(starts), "".join(text)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The ids `start … stop`, which have to be in the window, or come after it."""
        if start < self.first:
            raise ValueError(f"token {start} is forgotten, the window begins at {self.first}")
        self.extend(stop)
        return self._ids[start - self.first : stop - self.first]

    def forget(self, before: int) -> None:
        """Let go of what comes before a token, now and then."""
        count = min(before, self.stop) - self.first
        if count < 1 << 12:
            return
        char = int(self._starts[count]) if count < len(self._starts) else len(self._text)
        self._ids, self._starts = self._ids[count:].copy(), self._starts[count:] - char
        self._text = self._text[char:]
        self.first += count

    def put(self, spots: Sequence[tuple[int, str]], boundary: Boundary, limits: Sequence[int | None] = ()) -> Insert:
        """What changes when sentences are put in, each at the end of the sentence, or of the word, that a token is in.

        Args:
            spots: `(token, sentence)`, in order; they change one stretch of tokens together.
            boundary: "sentence" or "word". Where no sentence ends for 1,000 characters, or before its limit, it is a word.
            limits: The last token at which each sentence may be put, or None; empty: none has a limit.

        Raises:
            InputError: if the text around cannot be tokenized on its own.
        """
        return self._changed(
            self._places(spots, boundary, limits or [None] * len(spots)), [f" {sentence}" for _, sentence in spots]
        )

    def open(self, sentences: Sequence[str]) -> Insert:
        """What changes when the text begins with these sentences."""
        self.extend(1)
        pieces = [*(f"{sentence} " for sentence in sentences[:-1]), sentences[-1]]
        if not self._text[:1].isspace():
            pieces[-1] += " "
        return self._changed([0] * len(pieces), pieces)

    def _places(self, spots: Sequence[tuple[int, str]], boundary: Boundary, limits: Sequence[int | None]) -> list[int]:
        """Characters of the window."""
        self.extend(spots[-1][0] + 1)
        while len(self._text) <= self._char(spots[-1][0]) + SENTENCE_REACH_CHARS:
            self.extend(self.stop + 1)
        begin = self._char(self._word_start(max(self.first, spots[0][0] - _CONTEXT_TOKENS[0]), -1))
        end = min(len(self._text), self._char(spots[-1][0]) + SENTENCE_REACH_CHARS + 1)
        words = [begin + place for place in word_ends(self._text[begin:end])]
        ends = (
            [match.end() for match in SENTENCE_END.finditer(self._text, begin, end)] if boundary == "sentence" else []
        )
        places: list[int] = []
        for (token, _), limit in zip(spots, limits, strict=True):
            char = self._char(token)
            last = len(self._text) if limit is None else self._char(limit)
            found = bisect_left(ends, char)
            if found < len(ends) and ends[found] <= min(char + SENTENCE_REACH_CHARS, last):
                places.append(ends[found])
                continue
            word = bisect_left(words, char + 1) - 1
            places.append(words[max(word, 0)])
        return places

    def _changed(self, places: list[int], sentences: list[str]) -> Insert:
        pieces, ends, at = list[str](), list[tuple[int, int]](), 0
        for context in _CONTEXT_TOKENS:
            near, far = self._token(places[0]), self._token(places[-1])
            self.extend(self.first + far + 3 * context)
            low = self._word_start(max(self.first, self.first + near - context // 2), -1)
            outer = self._word_start(max(self.first, low - context // 2), -1)
            high = self._word_start(self.first + far + context // 2, 1)
            last = self._word_start(high + context // 2, 1)
            begin, end = self._char(outer), self._char(last)
            pieces, ends, at, length = [], [], begin, 0
            for place, sentence in zip(places, sentences, strict=True):
                before = self._text[at:place]
                pieces += [before, sentence]
                start = length + len(before) + len(sentence) - len(sentence.lstrip())
                length += len(before) + len(sentence)
                ends.append((start, length - (len(sentence) - len(sentence.rstrip()))))
                at = place
            text = "".join([*pieces, self._text[at:end]])
            block = self._encoder.alone(text)
            longer = len(text) - (end - begin)
            left = bisect_left(block.starts, self._char(low) - begin)
            right = bisect_left(block.starts, self._char(high) - begin + longer)
            ids = np.asarray(block.token_ids, dtype=np.int64)
            before = min(left, low - outer, _COMPARED_TOKENS)
            after = min(last - high, _COMPARED_TOKENS)
            if np.array_equal(ids[left - before : left], self._kept(low - before, low)) and np.array_equal(
                ids[right : right + after], self._kept(high, high + after)
            ):
                spans = [block.tokens_of(start, stop) for start, stop in ends]
                return Insert(low, high, ids[left:right], tuple((a - left, b - left) for a, b in spans))
        raise InputError(
            f"noise cannot be tokenized in pieces by this tokenizer near {self._text[places[0] : places[0] + 40]!r}; "
            "give another tokenizer or text"
        )

    def _kept(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start - self.first : stop - self.first]

    def _char(self, token: int) -> int:
        index = token - self.first
        return int(self._starts[index]) if index < len(self._starts) else len(self._text)

    def _token(self, char: int) -> int:
        """The first token of the window from a character on, counted from the window's first."""
        return int(np.searchsorted(self._starts, char))

    def _word_start(self, token: int, direction: int) -> int:
        """The next token, or the one before, that begins a word, or the white space before one; else an end."""
        while self.first < token < self.stop:
            char = self._char(token)
            if self._text[char].isspace() != self._text[char - 1].isspace() and self._char(token - 1) < char:
                return token
            token += direction
        return token


class SampleText:
    """The token ids of the noise with a sample's facts in it.

    Args:
        window: The noise, at its start; this text's alone.
        facts: The sentences.
        targets: The token of the noise at which each is put, in order; empty: they begin the text.
        boundary: Where sentences may stand.
        limit: The last token of the noise at which a sentence may be put; of each of them, if there are several.
    """

    def __init__(
        self,
        window: NoiseWindow,
        facts: Sequence[str],
        targets: Sequence[int],
        boundary: Boundary = "sentence",
        limit: int | Sequence[int] | None = None,
    ) -> None:
        self._window = window
        self._limits = list(limit) if isinstance(limit, Sequence) else [limit] * len(targets)
        self._boundary: Boundary = boundary
        self._clusters = _clusters(targets, facts) if targets else []
        self._done: list[tuple[int, np.ndarray]] = []  # what stands where, up to `_position`
        self._position = 0  # of the text: from here on it is the noise from `_noise` on
        self._noise = 0
        self.fact_spans: list[tuple[int, int]] = []
        if facts and not targets:
            self._insert(window.open(facts), 0)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The ids `start … stop`. Slices are taken in order; what lies before `start` is forgotten."""
        while self._clusters and self._clusters[0][0][0] - LOOK_AHEAD_TOKENS <= stop:
            spots = self._clusters.pop(0)
            limits, self._limits = self._limits[: len(spots)], self._limits[len(spots) :]
            self._insert(self._window.put(spots, self._boundary, limits), start)
        self._done = [(at, ids) for at, ids in self._done if at + len(ids) > start]
        parts = [ids[max(0, start - at) : stop - at] for at, ids in self._done if at < stop]
        if stop > self._position:
            begin = self._noise + max(0, start - self._position)
            parts.append(self._window.slice(begin, self._noise + stop - self._position))
        return np.concatenate(parts)

    def forget(self, start: int) -> None:
        """Let go of the noise that slices from `start` on, and facts yet to come, have nothing to do with."""
        self._window.forget(max(0, self._noise + max(0, start - self._position) - LOOK_AHEAD_TOKENS))

    def _insert(self, insert: Insert, start: int) -> None:
        taken = max(0, start - self._position)
        begin = self._position + taken
        plain = self._window.slice(self._noise + taken, insert.low).copy()
        self._done += [(begin, plain), (begin + len(plain), insert.ids)]
        begin += len(plain)
        self.fact_spans += [(begin + first, begin + stop) for first, stop in insert.spans]
        self._position, self._noise = begin + len(insert.ids), insert.high


def _clusters(targets: Sequence[int], facts: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Facts so near to each other that what changes around them may overlap."""
    clusters: list[list[tuple[int, str]]] = []
    for spot in zip(targets, facts, strict=True):
        if clusters and spot[0] - clusters[-1][-1][0] <= LOOK_AHEAD_TOKENS:
            clusters[-1].append(spot)
        else:
            clusters.append([spot])
    return clusters
