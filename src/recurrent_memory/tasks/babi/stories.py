"""bAbI tasks 1, 2, 3 and 5: stories of a small world, and when what is asked about them.

The rules were found by counting in the published files, where they hold without exception. After every second
statement, if one of the last five statements gives occasion, a question is asked about the person or thing that the
statement is about, as things stand by then. Five questions make a story.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ..base import Fits, Sample
from ..whereabouts import PEOPLE, PLACES
from .world import OBJECTS, Event, Kind, World, say, understood

GIVERS = ("Bill", "Fred", "Jeff", "Mary")
"""The people of task 5."""

QUESTIONS_PER_STORY = 5
_WINDOW_STATEMENTS = 5
_TRIES = 8


@dataclass(frozen=True, slots=True)
class _Asked:
    question: str
    answer: str
    supporting: tuple[int, ...]


_Ask = Callable[[World, random.Random, float], _Asked | None]


def draw_where_is_person(rng: random.Random, fits: Fits | None = None, uneven: float = 1.0) -> Sample | None:
    """Task 1: "Where is Mary?", one supporting fact."""
    return _draw(rng, World(PEOPLE, {"go": 1}, rng), _where_is_person, PLACES, fits, uneven=uneven)


def draw_where_is_object(rng: random.Random, fits: Fits | None = None, uneven: float = 1.0) -> Sample | None:
    """Task 2: "Where is the milk?", two supporting facts."""
    return _draw(
        rng, World(PEOPLE, {"go": 1, "take": 1, "drop": 1}, rng), _where_is_object, PLACES, fits, uneven=uneven
    )


def draw_where_was_object(rng: random.Random, fits: Fits | None = None, uneven: float = 1.0) -> Sample | None:
    """Task 3: "Where was the milk before the garden?", three supporting facts."""
    world = World(PEOPLE, {"go": 1, "take": 1, "drop": 1}, rng)
    return _draw(rng, world, _where_was_object, PLACES, fits, taken_there_share=0.2, uneven=uneven)


def draw_who_gave(rng: random.Random, fits: Fits | None = None, uneven: float = 1.0) -> Sample | None:
    """Task 5: "Who gave the milk to Fred?", one supporting fact, answered with a person or a thing."""
    # Giving is tried four times as often as the rest, by the shares of statements in the files.
    weights: dict[Kind, int] = {"go": 1, "take": 1, "drop": 1, "give": 4}
    return _draw(rng, World(GIVERS, weights, rng), _who_gave, (*GIVERS, *OBJECTS), fits, uneven=uneven)


def _draw(
    rng: random.Random,
    world: World,
    ask: _Ask,
    answers: tuple[str, ...],
    fits: Fits | None,
    taken_there_share: float = 1.0,
    uneven: float = 1.0,
) -> Sample | None:
    """A story up to one of its questions, each equally likely, without the others, as in BABILong; None as soon as it does not fit."""
    facts: list[str] = []
    wanted = rng.randrange(QUESTIONS_PER_STORY)
    while True:
        for _ in range(2):
            facts.append(say(world.step(), rng, taken_there_share, dropped_there_share=0.2))
        if fits is not None and not fits(facts):
            return None
        asked = ask(world, rng, uneven)
        if asked is None:
            continue
        if wanted == 0:
            return Sample(tuple(facts), asked.question, asked.answer, asked.supporting, answers)
        wanted -= 1


def ask_more_of_a_story(rng: random.Random, sample: Sample, number: int) -> list[Sample]:
    """Other questions of the same kind about the end of a story.

    Args:
        rng: Draws them.
        sample: Of one of the functions above.
        number: At most so many.

    Raises:
        InputError: if its facts or its question are of another kind.

    Example:
        >>> sample = draw_who_gave(random.Random(0))
        >>> sample.question, [other.question for other in ask_more_of_a_story(random.Random(0), sample, 2)]
        ('Who received the apple?', ['Who did Mary give the apple to?', 'What did Mary give to Bill?'])
    """
    world = World((*PEOPLE, *GIVERS), {"go": 1}, random.Random(0))
    for fact in sample.facts:
        world.tell(understood(fact))
    ask, found = _kind_of(sample.question), dict[str, _Asked]()
    for _ in range(_TRIES * number):
        if len(found) == number:
            break
        asked = ask(world, rng, 1.0)
        if asked is not None and asked.question != sample.question:
            found.setdefault(asked.question, asked)
    return [
        Sample(sample.facts, each.question, each.answer, each.supporting, sample.answers) for each in found.values()
    ]


def _kind_of(question: str) -> _Ask:
    for beginning, ask in _BEGINNINGS.items():
        if question.startswith(beginning):
            return ask
    raise InputError(f"{question!r} is no question about a story of who goes where, takes, drops or gives what")


def _recent(world: World) -> list[Event]:
    return world.events[-_WINDOW_STATEMENTS:]


def _choose(rng: random.Random, names: Sequence[str], order: Sequence[str], uneven: float) -> str:
    """One of the names; each `uneven` times as often as the next one in the order."""
    if uneven == 1:
        return rng.choice(names)
    return rng.choices(names, [uneven ** -order.index(name) for name in names])[0]


def _where_is_person(world: World, rng: random.Random, uneven: float) -> _Asked | None:
    person = _choose(rng, [event.person for event in _recent(world)], PEOPLE, uneven)
    index = world.last_move[person]
    return _Asked(f"Where is {person}?", world.events[index].place, (index,))


def _where_is_object(world: World, rng: random.Random, uneven: float) -> _Asked | None:
    """Of a thing in hand that has been moved since, or one that was dropped by someone whose place was told."""
    told = {thing: _told_by(world, thing) for thing in world.carries}
    candidates = [event.thing for event in _recent(world) if told.get(event.thing) is not None]
    if not candidates:
        return None
    thing = _choose(rng, candidates, OBJECTS, uneven)
    move = told[thing]
    assert move is not None, "a candidate"
    return _Asked(f"Where is the {thing}?", world.events[move].place, (world.carries[thing].events[-1], move))


def _told_by(world: World, thing: str) -> int | None:
    """The move that tells where a thing is."""
    carry = world.carries[thing]
    if carry.holder is None:
        return carry.place_told_by
    return carry.moves[-1] if carry.moves else None


def _where_was_object(world: World, rng: random.Random, uneven: float) -> _Asked | None:
    """Of a thing that was carried to two places or more since it was last taken."""
    candidates = [event.thing for event in _recent(world) if event.thing and len(world.carries[event.thing].moves) > 1]
    if not candidates:
        return None
    thing = _choose(rng, candidates, OBJECTS, uneven)
    carry = world.carries[thing]
    places = [world.events[index].place for index in carry.moves]
    before = places[rng.randrange(1, len(places))]
    # A place may be passed twice: the last time counts.
    at = max(index for index, place in enumerate(places) if place == before)
    support = (carry.events[-1], carry.moves[at], carry.moves[at - 1])
    return _Asked(f"Where was the {thing} before the {before}?", places[at - 1], support)


def _who_gave(world: World, rng: random.Random, uneven: float) -> _Asked | None:
    """Of the last giving of a thing, in one of five forms; "what" is asked twice as often as each of the others."""
    given = [event.thing for event in _recent(world) if event.kind == "give"]
    if not given:
        return None
    thing = _choose(rng, given, OBJECTS, uneven)
    gifts = [(index, event) for index, event in enumerate(world.events) if event.kind == "give"]
    index, gift = next((i, event) for i, event in reversed(gifts) if event.thing == thing)
    forms = (
        (f"What did {gift.person} give to {gift.receiver}?", thing),
        (f"Who gave the {thing}?", gift.person),
        (f"Who gave the {thing} to {gift.receiver}?", gift.person),
        (f"Who did {gift.person} give the {thing} to?", gift.receiver),
        (f"Who received the {thing}?", gift.receiver),
    )
    # The published files also ask what someone gave who has given another thing since, and expect the older answer.
    later = any(i > index and (event.person, event.receiver) == (gift.person, gift.receiver) for i, event in gifts)
    question, answer = rng.choices(forms, (0 if later else 2, 1, 1, 1, 1))[0]
    return _Asked(question, answer, (index,))


_BEGINNINGS: dict[str, _Ask] = {
    "Where was the ": _where_was_object,
    "Where is the ": _where_is_object,
    "Where is ": _where_is_person,
    "What did ": _who_gave,
    "Who ": _who_gave,
}
