"""Endless texts with facts hidden in them, read a segment at a time: what training sees.

A lane is a text without end. Noise is taken from documents in order, sentences are put in at word ends, and the whole
is tokenized: nothing tells a fact from its surroundings but what it says. The lane knows which facts it has given, and
so what to ask.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tasks.hiding import hide, word_ends
from ..tasks.whereabouts import draw_distractor, draw_fact

CHARS_PER_TOKEN = 3.0
NEWLINE_SHARE = 0.2
JUNK_SHARE = 0.03
# What of a lane is kept as it is when it is written down.
_PLAIN = (
    "seed", "facts_per_segment", "distractors_per_segment", "segment_length", "first_facts", "known", "age", "said",
    "quiet", "_buffer", "_document", "_position", "_stop",
)  # fmt: skip


@dataclass(slots=True)
class _Event:
    """A fact in the lane's buffer: its first and last token, and what it says."""

    start: int
    end: int
    person: str
    place: str


@dataclass(slots=True)
class Lane:
    """One endless text.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        noise: Documents of each source; sources are drawn evenly.
        seed: The text is a function of it.
        facts_per_segment: The mean number of facts in `segment_length` tokens of noise.
        distractors_per_segment: The mean number of sentences that look like facts.
        segment_length: The most tokens that `take` gives.
        first_facts: The mean number of facts in the first stretch of text besides.
    """

    tokenizer: Any
    noise: Sequence[Sequence[str]]
    seed: int
    facts_per_segment: float
    distractors_per_segment: float
    segment_length: int
    first_facts: float = 0.0
    known: dict[str, str] = field(default_factory=dict[str, str])
    age: dict[str, int] = field(default_factory=dict[str, int])
    lost: set[str] = field(default_factory=set[str])
    said: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    quiet: bool = True
    _rng: random.Random = field(init=False)
    _buffer: list[int] = field(default_factory=list[int])
    _events: list[_Event] = field(default_factory=list[_Event])
    _document: tuple[int, int] | None = None
    _position: int = 0
    _stop: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def take(self) -> list[int]:
        """The next segment: full most of the time, cut short or cut inside a fact at times.

        Afterwards `known` holds who is where by all that was taken so far, `age` how many segments ago that was said,
        and `said` the facts that ended in this segment: the position of the token before the last (the place, which may
        lie a segment back: then it is left out), and the person; `quiet` says that no part of a fact was in it.
        """
        while len(self._buffer) <= self.segment_length:
            self._extend()
        length = self._draw_length()
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        for person in self.age:
            self.age[person] += 1
        self.said = []
        self.quiet = all(event.start >= length for event in self._events)
        later: list[_Event] = []
        for event in self._events:
            if event.end < length:
                self.known[event.person] = event.place
                self.age[event.person] = 0
                self.lost.discard(event.person)
                if event.end > 0:
                    self.said.append((event.end - 1, event.person))
            else:
                later.append(_Event(event.start - length, event.end - length, event.person, event.place))
        self._events = later
        return taken

    def forget(self, person: str) -> None:
        """Ask no more for a person whom the memory has lost, until the text speaks of them again."""
        del self.known[person], self.age[person]
        self.lost.add(person)

    def values(self) -> dict[str, Any]:
        """All that goes on changing, as JSON can hold it: which document, not its text."""
        plain = {name.lstrip("_"): getattr(self, name) for name in _PLAIN}
        return {
            **plain,
            "lost": sorted(self.lost),
            "random": self._rng.getstate(),
            "events": [[event.start, event.end, event.person, event.place] for event in self._events],
        }

    @classmethod
    def restored(cls, tokenizer: Any, noise: Sequence[Sequence[str]], values: dict[str, Any]) -> Lane:
        """The lane whose `values` these are, over the same noise.

        Raises:
            KeyError, TypeError, ValueError: if they are not those of a lane.
        """
        lane = cls(tokenizer, noise, 0, 0.0, 0.0, 1)
        for name in _PLAIN:
            setattr(lane, name, values[name.lstrip("_")])
        lane.said = [(position, person) for position, person in values["said"]]
        lane.lost = set(values["lost"])
        if values["document"] is not None:
            source, index = values["document"]
            lane._document = source, index
        lane._events = [_Event(*event) for event in values["events"]]
        restore_random(lane._rng, values["random"])
        return lane

    def _text(self) -> str:
        """The document that noise is taken from."""
        if self._document is None:
            return ""
        source, index = self._document
        return self.noise[source][index]

    def _draw_length(self) -> int:
        draw = self._rng.random()
        if draw < 0.1:
            return self._rng.randrange(1, self.segment_length + 1)
        if draw < 0.4:
            inside = [e for e in self._events if e.start > 0 and e.end <= self.segment_length]
            if inside:
                event = self._rng.choice(inside)
                return self._rng.randrange(event.start, event.end + 1)
        return self.segment_length

    def _extend(self) -> None:
        rng = self._rng
        if rng.random() < JUNK_SHARE:
            self._buffer += self._junk()
            return
        document = self._text()
        if self._position >= min(self._stop, len(document)):
            source = rng.choice(range(len(self.noise)))
            self._document = source, rng.choice(range(len(self.noise[source])))
            document = self._text()
            self._position = rng.randrange(max(1, len(document) - 20_000))
            self._stop = self._position + rng.randrange(2_000, 20_000)
        size = rng.randrange(100, 200 + 12 * self.segment_length)
        text = document[self._position : self._position + size]
        self._position += size
        segments = max(1, len(text)) / CHARS_PER_TOKEN / self.segment_length
        mean = self.facts_per_segment * segments + self.first_facts
        self.first_facts = 0.0
        facts = [draw_fact(rng) for _ in range(_poisson(rng, mean))]
        others = [draw_distractor(rng) for _ in range(_poisson(rng, self.distractors_per_segment * segments))]
        order: list[Any] = [*facts, *others]
        rng.shuffle(order)
        ends = word_ends(text)
        sentences = [item if isinstance(item, str) else item.sentence for item in order]
        hidden = hide(text, sentences, [rng.choice(ends) for _ in order], rng, NEWLINE_SHARE)
        encoding = self.tokenizer.encode(hidden.text, add_special_tokens=False)
        spans = sorted(
            ((span, item) for span, item in zip(hidden.spans, order, strict=True) if not isinstance(item, str)),
            key=lambda pair: pair[0],
        )
        offsets, token = encoding.offsets if facts else [], 0
        for (start, end), fact in spans:
            while offsets[token][1] < end:
                token += 1
            first = token
            while offsets[first][0] > start:
                first -= 1
            self._events.append(_Event(len(self._buffer) + first, len(self._buffer) + token, fact.person, fact.place))
        self._buffer += encoding.ids

    def _junk(self) -> list[int]:
        """Tokens at random, one token over and over, or a table of numbers: text is not always prose."""
        rng = self._rng
        vocab, count = self.tokenizer.get_vocab_size(), rng.randrange(20, 300)
        kind = rng.randrange(3)
        if kind == 0:
            return [rng.randrange(vocab) for _ in range(count)]
        if kind == 1:
            return [rng.randrange(vocab)] * count
        numbers = " ".join(str(rng.random())[: rng.randrange(3, 9)] for _ in range(count // 3))
        return self.tokenizer.encode(numbers, add_special_tokens=False).ids


def restore_random(rng: random.Random, state: Sequence[Any]) -> None:
    """Put a generator where `getstate` found it; JSON has made lists of its tuples."""
    version, inner, gauss = state
    rng.setstate((version, tuple(inner), gauss))


def _poisson(rng: random.Random, mean: float) -> int:
    count, term = 0, math.exp(-mean)
    total, draw = term, rng.random()
    while draw > total and count < 200:
        count += 1
        term *= mean / count
        total += term
    return count
