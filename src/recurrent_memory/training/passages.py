"""What the facts of an example are hidden in: a text from anywhere, or passages that are easily taken for facts.

A memory that is to last for thousands of segments may take next to none of them for a fact, and a few thousand examples of text
from anywhere hold too few that could be taken for one (docs/decisions/0018).
"""

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
    """Passages of about 400 characters that have one of some phrases in them (hard negatives).

    Args:
        noise: Documents of each source.
        phrases: Words, or several in a row, such as `phrases_of_facts`.

    Attributes:
        phrases: Those of them that the noise has.

    Raises:
        InputError: if the noise has none of them.
    """

    def __init__(self, noise: Sequence[Sequence[str]], phrases: Sequence[str]) -> None:
        self._documents = [document for documents in noise for document in documents]
        lines = [document.replace("\n", " ") for document in self._documents]  # they are broken anywhere
        found = {phrase: list(_occurrences(lines, phrase)) for phrase in phrases}
        self._places = [places for places in found.values() if places]
        self.phrases = tuple(phrase for phrase, places in found.items() if places)
        if not self.phrases:
            raise InputError(
                f"noise has none of {', '.join(map(repr, phrases))}, so none of it is hard noise; give other texts, or "
                "leave hard_noise out"
            )

    def draw(self, rng: random.Random) -> Iterator[str]:
        """Passages without end; each phrase comes as often as any other, anywhere in its passage."""
        between = ""
        while True:
            number, place = rng.choice(rng.choice(self._places))
            document = self._documents[number]
            start = max(0, place - rng.randrange(PASSAGE_CHARS))
            start += document[start:place].find(" ") + 1
            stop = document.find(" ", start + PASSAGE_CHARS)
            yield between + document[start : stop if stop >= 0 else len(document)].rstrip()
            between = "\n\n"


def phrases_of_facts(tasks: Sequence[Task]) -> tuple[str, ...]:
    """One, two and three words in a row of the facts of some tasks, each once, as 64 samples of each task have them.

    Example:
        >>> from recurrent_memory.tasks.registry import load_task
        >>> {"garden", "the garden", "to the garden"} <= set(phrases_of_facts([load_task("detect")]))
        True
    """
    rng = random.Random(0)
    facts = [fact for task in tasks for _ in range(_SAMPLES) for fact in task.draw(rng).facts]
    words = [_WORD.findall(fact) for fact in facts]
    return tuple(
        sorted(
            {
                " ".join(row[first : first + count])
                for row in words
                for count in (1, 2, 3)
                for first in range(len(row) - count + 1)
            }
        )
    )


def _occurrences(documents: Sequence[str], phrase: str) -> Iterator[tuple[int, int]]:
    """Documents, and where in them the phrase stands, not as a part of longer words."""
    for number, document in enumerate(documents):
        place = document.find(phrase)
        while place >= 0:
            after = place + len(phrase)
            if not (_WORD.match(document[place - 1 : place]) or _WORD.match(document[after : after + 1])):
                yield number, place
            place = document.find(phrase, after)
