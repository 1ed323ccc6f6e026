"""What a task is: facts, a question and its answer, made from a source of randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from ..errors import ConfigError

Placement = Literal["first", "anywhere", "alone"]
"""Where facts stand: together at the start of a long text; at random places in it, in their order; or they are the text."""

Fits = Callable[[Sequence[str]], bool]
"""Whether so many facts still fit where they are to stand; more of them never fit better."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Facts, a question about them, and the answer.

    Args:
        facts: Sentences, in the order in which they are to be read.
        question: What is asked after them.
        answer: The right answer.
        supporting: Indices of the facts that the answer needs, in the order of the reasoning.
        answers: The answers that are possible for this question, or None if any text may be one.

    Raises:
        ConfigError: if `supporting` points outside `facts`, or `answer` is not one of `answers`.

    Example:
        >>> Sample(("Mary went to the garden.",), "Where is Mary?", "garden", (0,)).answer
        'garden'
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...] = ()
    answers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        outside = [index for index in self.supporting if not 0 <= index < len(self.facts)]
        if outside:
            raise ConfigError(
                f"supporting={self.supporting} points outside the {len(self.facts)} facts; "
                "give indices of facts, counted from 0"
            )
        if self.answers is not None and self.answer not in self.answers:
            raise ConfigError(f"answer={self.answer!r} is not one of answers={self.answers}; add it to them")


@runtime_checkable
class Task(Protocol):
    """Makes samples on the fly. A sample is a function of the source of randomness alone.

    Attributes:
        name: The name in the registry.
        answers: All answers that samples can have (guessing one is chance), or None if they are open.
        placement: Where the facts stand in a long text.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def answers(self) -> tuple[str, ...] | None: ...  # noqa: D102

    @property
    def placement(self) -> Placement: ...  # noqa: D102

    def draw(self, rng: random.Random) -> Sample:
        """The next sample."""
        ...


@runtime_checkable
class AsksMore(Task, Protocol):
    """A task that can ask several questions about the same facts."""

    def ask_more(self, rng: random.Random, sample: Sample, number: int) -> list[Sample]:
        """Other questions about the facts of a sample, at most `number`; fewer where there are no more."""
        ...


@runtime_checkable
class DrawsFitting(Task, Protocol):
    """A task that need not finish a sample to see that it is too long: most of its samples would be, in a short text."""

    def draw_fitting(self, rng: random.Random, fits: Fits) -> Sample | None:
        """The next sample, or None as soon as its facts do not fit."""
        ...
