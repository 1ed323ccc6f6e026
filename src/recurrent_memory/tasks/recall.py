"""The three tasks of the RMT papers: remember the fact at the start, find it anywhere, put two together.

Bulatov et al.: Scaling Transformer to 1M tokens and beyond with RMT (arXiv:2304.11062), section 4.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ..errors import ConfigError
from .babi.relations import OPPOSITES, ask_more_relations, draw_relations
from .base import Placement, Sample
from .whereabouts import PLACES, draw_fact, question


@dataclass(frozen=True, slots=True)
class Memorize:
    """Who is where is said once, at the start of the text, and asked at its end.

    Example:
        >>> sample = Memorize().draw(random.Random(0))
        >>> len(sample.facts), sample.supporting
        (1, (0,))
    """

    name: str = "memorize"
    answers: tuple[str, ...] | None = PLACES
    placement: Placement = "first"

    def draw(self, rng: random.Random) -> Sample:
        """One fact and the question for it."""
        fact = draw_fact(rng)
        return Sample((fact.sentence,), question(fact.person), fact.place, (0,), PLACES)


@dataclass(frozen=True, slots=True)
class Detect(Memorize):
    """As `Memorize`, with the fact anywhere in the text.

    Example:
        >>> Detect().draw(random.Random(0)) == Memorize().draw(random.Random(0))
        True
    """

    name: str = "detect"
    placement: Placement = "anywhere"


@dataclass(frozen=True, slots=True)
class Reason:
    """Two facts about three places anywhere in the text; the question is for the neighbour of one of them.

    Both facts have to be kept, since either can be asked for and they tell the two neighbours of a place apart.

    Args:
        converse: Whether a question may go the other way than its fact ("What is the garden south of?" where the office was said
            to be north of the garden), as in bAbI; False: it is always in the words of the fact.
        directions: How often each direction is asked for, as weights: with `{"north": 4, "south": 1}` four questions of five are
            for what was said to be north of something. To begin a curriculum with: what is worth keeping is then known while the
            text is read, and no longer even. None: all alike.

    Raises:
        ConfigError: if there is no such direction, or a weight is not above 0.

    Example:
        >>> sample = Reason().draw(random.Random(1))
        >>> len(sample.facts), len(sample.supporting)
        (2, 1)
    """

    converse: bool = True
    directions: Mapping[str, float] | None = None
    name: str = "reason"
    answers: tuple[str, ...] | None = PLACES
    placement: Placement = "anywhere"

    def __post_init__(self) -> None:
        given: Any = self.directions
        if given is None:
            return
        if not isinstance(given, Mapping) or not given or not set(given) <= OPPOSITES.keys():
            raise ConfigError(
                f"directions={given!r} of task 'reason' must give weights of some of {', '.join(OPPOSITES)}, such as "
                "{north: 4, south: 1}"
            )
        weights = list(cast(Mapping[str, Any], given).values())
        if not all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights):
            raise ConfigError(f"directions={given!r} of task 'reason': weights must be numbers above 0")

    def draw(self, rng: random.Random) -> Sample:
        """Two relations of three places in a line, and a question for one."""
        return draw_relations(rng, self.converse, self.directions)

    def ask_more(self, rng: random.Random, sample: Sample, number: int) -> list[Sample]:
        """Other questions about its relations; none where one direction is to be asked for more often than another."""
        return [] if self.directions is not None else ask_more_relations(rng, sample, number, self.converse)
