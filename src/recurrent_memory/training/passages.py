"""What the facts of an example are hidden in: a text from anywhere, or passages that are easily taken for facts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from ..errors import InputError
from ..tasks.base import Task

PASSAGE_CHARS = 400

_CHUNK_CHARS = 4096
_WORD = re.compile(r"\w+")
_SAMPLES = 64


def from_anywhere(noise: Sequence[Sequence[str]], rng: random.Random) -> Iterator[str]:
    """Text without end, from anywhere in a document, then from anywhere in another.

    Args:
        noise: Documents of each source; sources are drawn evenly.
        rng: Draws sources, documents and places.
    """
    between = ""
    while True:
        documents = noise[rng.randrange(len(noise))]
        document = documents[rng.randrange(len(documents))]
        start = document.find(" ", rng.randrange(len(document))) + 1
        yield between
        for at in range(start, len(document), _CHUNK_CHARS):
            yield document[at : at + _CHUNK_CHARS]
        between = "\n\n"


class HardPassages:
    """Passages of about 400 characters that have one of some words in them (hard negatives).

    Args:
        noise: Documents of each source.
        words: The words, such as `words_of_facts`.

    Attributes:
        words: Those of them that the noise has.

    Raises:
        InputError: if the noise has none of them.
    """

    def __init__(self, noise: Sequence[Sequence[str]], words: Sequence[str]) -> None:
        self._documents = [document for documents in noise for document in documents]
        found = {word: list(_occurrences(self._documents, word)) for word in words}
        self._places = [places for places in found.values() if places]
        self.words = tuple(word for word, places in found.items() if places)
        if not self.words:
            raise InputError(
                f"noise has none of the words {', '.join(words)}, so none of it is hard noise; give other texts, or "
                "leave hard_noise out"
            )

    def draw(self, rng: random.Random) -> Iterator[str]:
        """Passages without end; each word comes as often as any other, anywhere in its passage."""
        between = ""
        while True:
            number, place = rng.choice(rng.choice(self._places))
            document = self._documents[number]
            start = max(0, place - rng.randrange(PASSAGE_CHARS))
            start += document[start:place].find(" ") + 1
            stop = document.find(" ", start + PASSAGE_CHARS)
            yield between + document[start : stop if stop >= 0 else len(document)].rstrip()
            between = "\n\n"


def words_of_facts(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The words that the facts of some tasks are made of, each once, as 64 samples of each task have them."""
    rng = random.Random(0)
    samples = [task.draw(rng) for task in tasks for _ in range(_SAMPLES)]
    return tuple(sorted({word for sample in samples for fact in sample.facts for word in _WORD.findall(fact)}))


def _occurrences(documents: Sequence[str], word: str) -> Iterator[tuple[int, int]]:
    """Documents, and where in them the word stands, not as a part of another."""
    for number, document in enumerate(documents):
        place = document.find(word)
        while place >= 0:
            after = place + len(word)
            if not (_WORD.match(document[place - 1 : place]) or _WORD.match(document[after : after + 1])):
                yield number, place
            place = document.find(word, after)
