"""bAbI task 4: two relations of three places in a line, one of them asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping

from ..base import Sample
from ..whereabouts import PLACES

OPPOSITES = {"north": "south", "south": "north", "east": "west", "west": "east"}

# How often the middle place is the subject of neither, one and both statements, counted in the published files.
_MIDDLE_AS_SUBJECT = (0.437, 0.456, 0.107)


def draw_relations(rng: random.Random, converse: bool = True, directions: Mapping[str, float] | None = None) -> Sample:
    """Two facts and a question, as the published files of task 4 have them.

    The question is for the subject of one of the facts, in its direction ("What is west of the kitchen?") or in the
    other ("What is the kitchen east of?"). Weston et al. (arXiv:1502.05698), task 4.

    Args:
        rng: Draws all.
        converse: Whether it may be in the other direction.
        directions: How often each direction of a fact is asked for, as weights; None: all alike.

    Example:
        >>> sample = draw_relations(random.Random(0))
        >>> sample.answer in sample.facts[sample.supporting[0]]
        True
    """
    wanted = rng.choices(list(directions), list(directions.values()))[0] if directions else None
    while True:
        facts, asked = _draw_facts(rng), rng.randrange(2)
        subject, direction, _ = facts[asked]
        if wanted in (None, direction):
            break
    sentences = tuple(f"The {a} is {way} of the {b}." for a, way, b in facts)
    forms = _forms(sentences[asked])
    form = rng.choice(forms)
    return Sample(sentences, form if converse else forms[0], subject, (asked,), PLACES)


def ask_more_relations(rng: random.Random, sample: Sample, number: int, converse: bool = True) -> list[Sample]:
    """Other questions about the facts of a sample.

    Args:
        rng: Draws them.
        sample: Of `draw_relations`.
        number: How many, where there are as many.
        converse: Whether they may be in the other direction.

    Example:
        >>> sample = draw_relations(random.Random(0))
        >>> len(ask_more_relations(random.Random(0), sample, 9))
        3
    """
    found: list[Sample] = []
    for index, fact in enumerate(sample.facts):
        for form in _forms(fact)[: 2 if converse else 1]:
            if form != sample.question:
                found.append(Sample(sample.facts, form, fact.split()[1], (index,), PLACES))
    return rng.sample(found, min(number, len(found)))


def _forms(fact: str) -> tuple[str, str]:
    """Both ways to ask for the subject of "The garden is north of the office."."""
    _, _, _, direction, *_, other = fact.removesuffix(".").split()
    return f"What is {direction} of the {other}?", f"What is the {other} {OPPOSITES[direction]} of?"


def _draw_facts(rng: random.Random) -> list[tuple[str, str, str]]:
    """Subject, direction and the other place of both facts, in the order in which they are told."""
    first, middle, last = rng.sample(PLACES, 3)
    to_first = rng.choice(tuple(OPPOSITES))
    sides = [(first, to_first), (last, OPPOSITES[to_first])]
    rng.shuffle(sides)
    num_subjects = rng.choices((0, 1, 2), _MIDDLE_AS_SUBJECT)[0]
    middle_is_subject = [index < num_subjects for index in range(2)]
    rng.shuffle(middle_is_subject)
    return [
        (middle, OPPOSITES[direction], place) if is_subject else (place, direction, middle)
        for (place, direction), is_subject in zip(sides, middle_is_subject, strict=True)
    ]
