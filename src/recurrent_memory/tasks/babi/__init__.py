"""The bAbI tasks: 1 to 5 made on the fly, and all twenty from the published files.

Weston et al.: Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks (arXiv:1502.05698).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ...errors import ConfigError
from ..base import Fits, Placement, Sample, Task
from ..whereabouts import PLACES
from .files import BabiFileTask, load_babi_samples
from .relations import ask_more_relations, draw_relations
from .stories import (
    GIVERS,
    ask_more_of_a_story,
    draw_where_is_object,
    draw_where_is_person,
    draw_where_was_object,
    draw_who_gave,
)
from .world import OBJECTS

__all__ = ["BabiFileTask", "GeneratedBabiTask", "load_babi", "load_babi_samples"]


@dataclass(frozen=True, slots=True)
class GeneratedBabiTask:
    """A bAbI task made on the fly.

    Example:
        >>> task = load_babi("qa2")
        >>> sample = task.draw(random.Random(0))
        >>> sample.answer in PLACES, len(sample.supporting)
        (True, 2)
    """

    name: str
    answers: tuple[str, ...] | None
    sampler: Callable[[random.Random, Fits], Sample | None]
    asker: Callable[[random.Random, Sample, int], list[Sample]] = ask_more_of_a_story
    placement: Placement = "anywhere"

    def draw(self, rng: random.Random) -> Sample:
        """A story up to one of its questions."""
        sample = self.sampler(rng, lambda _: True)
        assert sample is not None, "everything fits"
        return sample

    def draw_fitting(self, rng: random.Random, fits: Fits) -> Sample | None:
        """The same, or None as soon as it does not fit."""
        return self.sampler(rng, fits)

    def ask_more(self, rng: random.Random, sample: Sample, number: int) -> list[Sample]:
        """Other questions of the same kind about its facts."""
        return self.asker(rng, sample, number)


_ABOUT_SOMETHING = {
    "qa1": draw_where_is_person,
    "qa2": draw_where_is_object,
    "qa3": draw_where_was_object,
    "qa5": draw_who_gave,
}
_GENERATED = {
    "qa1": GeneratedBabiTask("qa1", PLACES, draw_where_is_person),
    "qa2": GeneratedBabiTask("qa2", PLACES, draw_where_is_object),
    "qa3": GeneratedBabiTask("qa3", PLACES, draw_where_was_object),
    "qa4": GeneratedBabiTask("qa4", PLACES, lambda rng, _: draw_relations(rng), ask_more_relations),
    "qa5": GeneratedBabiTask("qa5", (*GIVERS, *OBJECTS), draw_who_gave),
}


def load_babi(name: str, *, source: str | None = None, split: str = "test", uneven: float = 1.0) -> Task:
    """A bAbI task, `qa1` … `qa20`: from files or the hub if `source` is given, else made on the fly.

    Args:
        name: The task.
        source: A folder with the published files, one such file, or a dataset of the hub ("facebook/babi_qa").
        split: `train` or `test`, of the source.
        uneven: How many times as often a question is about a person (`qa1`) or a thing (`qa2`, `qa3`, `qa5`) as about the next
            one, always in the same order; of tasks made on the fly. To begin a curriculum with: of several facts alike a memory
            then learns to keep one, and to tell it from the others (docs/decisions/0020-one-difficulty-at-a-time.md). No other
            questions are asked about the same facts. 1: all alike.

    Raises:
        ConfigError: if there is no source for a task that cannot be made on the fly, or questions are to be uneven that cannot be.
        InputError: if the source cannot be read.
    """
    if uneven != 1:
        return _made_uneven(name, source, uneven)
    if source is not None:
        return BabiFileTask(name, load_babi_samples(name, source, split))
    if name not in _GENERATED:
        raise ConfigError(
            f"task {name!r} is not made on the fly (qa1 to qa5 are): give source=FOLDER with the bAbI files, "
            "or source='facebook/babi_qa' for the hub"
        )
    return _GENERATED[name]


def _made_uneven(name: str, source: str | None, uneven: float) -> Task:
    if not isinstance(uneven, int | float) or not 1 <= uneven < math.inf:
        raise ConfigError(f"uneven={uneven!r} of task {name!r} must be a number from 1")
    if source is not None or name not in _ABOUT_SOMETHING:
        raise ConfigError(
            f"uneven={uneven} of task {name!r}: only {', '.join(_ABOUT_SOMETHING)}, made on the fly, ask about one person or thing "
            "more often than another; leave it out (for qa4 there is the task reason, with directions)"
        )
    return replace(_GENERATED[name], sampler=partial(_ABOUT_SOMETHING[name], uneven=uneven), asker=lambda *_: [])
