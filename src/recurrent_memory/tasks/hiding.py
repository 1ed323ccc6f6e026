"""Hide sentences in a text, at places drawn at random, without touching the text itself."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_BREAK = re.compile(r"(?<=\S)\s")


@dataclass(frozen=True, slots=True)
class Hidden:
    """A text with sentences in it.

    Args:
        text: The text.
        spans: `(start, end)` of each sentence in it, in characters, in the order that they were given.
    """

    text: str
    spans: list[tuple[int, int]]


def word_ends(text: str) -> list[int]:
    """The places where a sentence can be put: before each white space that follows a word, and the end."""
    return [match.start() for match in _BREAK.finditer(text)] or [len(text)]


def hide(
    text: str, sentences: Sequence[str], positions: Sequence[int], rng: random.Random, newline_share: float = 0.0
) -> Hidden:
    """Put each sentence at (the first word end from) its position. Sentences at one position keep their order.

    Args:
        text: The text.
        sentences: What to hide.
        positions: Characters of `text`, one for each sentence.
        rng: Draws what stands before a sentence.
        newline_share: How often that is a newline rather than a space.
    """
    ends = word_ends(text)
    places = [ends[min(bisect_left(ends, position), len(ends) - 1)] for position in positions]
    pieces: list[str] = []
    spans: list[tuple[int, int]] = [(0, 0)] * len(sentences)
    last = length = 0
    for index in sorted(range(len(sentences)), key=lambda i: places[i]):
        before = text[last : places[index]] + ("\n" if newline_share and rng.random() < newline_share else " ")
        pieces += [before, sentences[index]]
        spans[index] = (length + len(before), length + len(before) + len(sentences[index]))
        length = spans[index][1]
        last = places[index]
    pieces.append(text[last:])
    return Hidden("".join(pieces), spans)


def hide_stream(chunks: Iterable[str], inserts: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Put sentences into a text that is never whole in memory.

    Args:
        chunks: The text, in pieces.
        inserts: `(position, sentence)`, in order of positions, counted in characters of the text; each sentence goes to
            the first word end from there on. What is left when the text ends is put at its end.
    """
    waiting = list(inserts)
    offset, before = 0, ""
    for chunk in chunks:
        last = 0
        while waiting and waiting[0][0] < offset + len(chunk):
            found = _word_end_from(before, chunk, max(last, waiting[0][0] - offset))
            if found is None:
                break
            yield chunk[last:found] + f" {waiting.pop(0)[1]}"
            last = found
        yield chunk[last:]
        offset += len(chunk)
        before = chunk[-1:] or before
    for _, sentence in waiting:
        yield f" {sentence}"


def _word_end_from(before: str, chunk: str, start: int) -> int | None:
    if start == 0 and chunk[:1].isspace() and before and not before.isspace():
        return 0
    match = _BREAK.search(chunk, start)
    return match.start() if match else None
