"""Who is where: bAbI's first task, its people, places and verbs, and sentences that look like facts but are none.

Weston et al.: Towards AI-Complete Question Answering (arXiv:1502.05698), task 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "hallway", "garden", "office", "bedroom", "kitchen")
VERBS = ("went to", "moved to", "journeyed to", "travelled to", "went back to")


@dataclass(frozen=True, slots=True)
class Fact:
    """That a person is in a place.

    Example:
        >>> Fact("Mary", "garden", "went to").sentence
        'Mary went to the garden.'
    """

    person: str
    place: str
    verb: str

    @property
    def sentence(self) -> str:
        """The fact in words."""
        return f"{self.person} {self.verb} the {self.place}."


def question(person: str) -> str:
    """The question whose answer is the person's place."""
    return f"Where is {person}?"


def draw_fact(rng: random.Random, people: Sequence[str] = PEOPLE, place: str | None = None) -> Fact:
    """A random fact about one of `people`."""
    return Fact(rng.choice(people), place or rng.choice(PLACES), rng.choice(VERBS))


# fmt: off
_OTHER_PEOPLE = (
    "Peter", "Emma", "Fred", "Bill", "Julie", "Jeff", "Harry", "Lucy",
    "George", "Anna", "Tom", "Alice", "Robert", "Jane", "Henry", "Susan",
)
# fmt: on
_TRAINING_DISTRACTORS = (
    "{other} {verb} the {place}.",
    "{person} thought about the {place}.",
    "The {place} is next to the {place2}.",
    "{pronoun} {verb} the {place}.",
    "{person} said that {other} {verb} the {place}.",
    "{person} likes the {place}.",
    "Where is {person}?",
    "{person} and the {place} were forgotten.",
)
_EVALUATION_DISTRACTORS = (
    "{other2} {verb} the {place}.",
    "{person} painted the {place}.",
    "The {place} belongs to {person}.",
    "The child {verb} the {place}.",
    "{person} heard that {other2} {verb} the {place}.",
    "{person} spoke of the {place} again.",
    "Who was in the {place}?",
    "{person} never cleans the {place}.",
)
_UNSEEN_PEOPLE = ("Victor", "Nora", "Oscar", "Helen", "Martin", "Clara")


def draw_distractor(rng: random.Random, *, unseen: bool = False) -> str:
    """A sentence with people, places or motion verbs that says nothing of where one of `PEOPLE` is.

    Args:
        rng: The source of randomness.
        unseen: Whether to draw from the templates and names that training never uses.
    """
    templates = _EVALUATION_DISTRACTORS if unseen else _TRAINING_DISTRACTORS
    return rng.choice(templates).format(
        person=rng.choice(PEOPLE),
        other=rng.choice(_OTHER_PEOPLE),
        other2=rng.choice(_UNSEEN_PEOPLE),
        pronoun=rng.choice(("He", "She", "They", "It", "Someone")),
        verb=rng.choice(VERBS),
        place=rng.choice(PLACES),
        place2=rng.choice(PLACES),
    )
