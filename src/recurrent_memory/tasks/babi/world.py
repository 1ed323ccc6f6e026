"""A small world: people, places, things; they go, take, put down and give. It knows what a reader of its story knows.

Rooms and actions are drawn as the published files of bAbI v1.2 have them, which is not quite what the later public
generator does. Found by counting in the files: people and things begin in rooms that the story does not tell; one of
the four people and one of the kinds of action are drawn until they fit together; someone who goes, goes elsewhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...errors import InputError
from ..whereabouts import PLACES, VERBS

Kind = Literal["go", "take", "drop", "give"]

OBJECTS = ("apple", "football", "milk")
TAKE_VERBS = ("got", "took", "grabbed", "picked up")
DROP_VERBS = ("dropped", "left", "discarded", "put down")
GIVE_VERBS = ("gave", "handed", "passed")


@dataclass(frozen=True, slots=True)
class Event:
    """One statement of a story.

    Args:
        kind: What is done.
        person: Who does it.
        place: Where the person goes (`go`).
        thing: What is taken, dropped or given.
        receiver: To whom (`give`).
    """

    kind: Kind
    person: str
    place: str = ""
    thing: str = ""
    receiver: str = ""


@dataclass(slots=True)
class Carry:
    """How a thing came to be where it is, as far as the story tells.

    Args:
        events: Indices of the statements about it since it was last taken: the taking or giving, and the dropping.
        moves: Indices of its carrier's moves with it.
        holder: Who has it, or None.
        place_told_by: Index of the carrier's last move when it was dropped, or None if no move was told.
    """

    events: list[int]
    moves: list[int] = field(default_factory=list[int])
    holder: str | None = None
    place_told_by: int | None = None


class World:
    """Draws what happens, keeps what was told.

    Args:
        people: Who lives in it.
        weights: How often each kind of action is tried; a kind that is not there never happens.
        rng: The world is a function of it.

    Example:
        >>> world = World(("Mary", "John"), {"go": 1}, random.Random(0))
        >>> world.step().kind
        'go'
    """

    def __init__(self, people: Sequence[str], weights: dict[Kind, int], rng: random.Random) -> None:
        self.people = tuple(people)
        self.events: list[Event] = []
        self.last_move: dict[str, int] = {}
        self.carries: dict[str, Carry] = {}
        self._rng = rng
        self._kinds: list[Kind] = [kind for kind, weight in weights.items() for _ in range(weight)]
        # True rooms, told or not.
        self._rooms = {name: rng.choice(PLACES) for name in (*self.people, *OBJECTS)}

    def step(self) -> Event:
        """Let something happen."""
        event: Event | None = None
        while event is None:
            event = self._try(self._rng.choice(self.people), self._rng.choice(self._kinds))
        self.tell(event)
        return event

    def _try(self, person: str, kind: Kind) -> Event | None:
        rng, room = self._rng, self._rooms[person]
        held = [thing for thing in OBJECTS if self._holder(thing) == person]
        if kind == "go":
            place = rng.choice(PLACES)
            return Event("go", person, place=place) if place != room else None
        if kind == "take":
            here = [thing for thing in OBJECTS if self._holder(thing) is None and self._rooms[thing] == room]
            return Event("take", person, thing=rng.choice(here)) if here else None
        if kind == "drop":
            return Event("drop", person, thing=rng.choice(held)) if held else None
        near = [other for other in self.people if other != person and self._rooms[other] == room]
        return Event("give", person, thing=rng.choice(held), receiver=rng.choice(near)) if held and near else None

    def _holder(self, thing: str) -> str | None:
        return self.carries[thing].holder if thing in self.carries else None

    def tell(self, event: Event) -> None:
        """Let this happen."""
        index = len(self.events)
        self.events.append(event)
        if event.kind == "go":
            self._rooms[event.person] = event.place
            self.last_move[event.person] = index
            for carry in self.carries.values():
                if carry.holder == event.person:
                    carry.moves.append(index)
        elif event.kind == "drop":
            carry = self.carries[event.thing]
            carry.events.append(index)
            carry.holder = None
            carry.place_told_by = self.last_move.get(event.person)
            self._rooms[event.thing] = self._rooms[event.person]
        else:
            self.carries[event.thing] = Carry([index], holder=event.receiver or event.person)


def say(event: Event, rng: random.Random, taken_there_share: float, dropped_there_share: float) -> str:
    """A statement in words.

    Args:
        event: What happens.
        rng: Draws the verb, and whether "there" is said.
        taken_there_share: How often "there" is said of taking.
        dropped_there_share: How often "there" is said of dropping.

    Example:
        >>> say(Event("give", "Fred", thing="milk", receiver="Jeff"), random.Random(1), 0, 0)
        'Fred gave the milk to Jeff.'
    """
    if event.kind == "go":
        return f"{event.person} {rng.choice(VERBS)} the {event.place}."
    if event.kind == "give":
        return f"{event.person} {rng.choice(GIVE_VERBS)} the {event.thing} to {event.receiver}."
    verbs, share = (TAKE_VERBS, taken_there_share) if event.kind == "take" else (DROP_VERBS, dropped_there_share)
    there = " there" if rng.random() < share else ""
    return f"{event.person} {rng.choice(verbs)} the {event.thing}{there}."


_KINDS: dict[str, Kind] = {
    **dict.fromkeys(VERBS, "go"),
    **dict.fromkeys(TAKE_VERBS, "take"),
    **dict.fromkeys(DROP_VERBS, "drop"),
    **dict.fromkeys(GIVE_VERBS, "give"),
}
_STATEMENT = re.compile(rf"(\w+) ({'|'.join(_KINDS)}) the (\w+)(?: there| to (\w+))?\.")


def understood(statement: str) -> Event:
    """What happens, by what is said: the inverse of `say`.

    Raises:
        InputError: if it is not a statement of such a story.

    Example:
        >>> understood("Mary picked up the milk there.")
        Event(kind='take', person='Mary', place='', thing='milk', receiver='')
    """
    match = _STATEMENT.fullmatch(statement)
    if match is None:
        raise InputError(f"{statement!r} is no statement of who goes where, takes, drops or gives what")
    person, verb, what, receiver = match.groups(default="")
    kind = _KINDS[verb]
    return Event(kind, person, what if kind == "go" else "", "" if kind == "go" else what, receiver)
