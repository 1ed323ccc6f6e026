"""A reader of bAbI stories that knows nothing of the generator: it parses sentences and works out answers from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOVE = re.compile(r"(\w+) (?:went back|went|journeyed|travelled|moved) to the (\w+)\.")
TAKE = re.compile(r"(\w+) (?:got|took|grabbed|picked up) the (\w+)(?: there)?\.")
DROP = re.compile(r"(\w+) (?:dropped|left|discarded|put down) the (\w+)(?: there)?\.")
GIVE = re.compile(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.")
RELATION = re.compile(r"The (\w+) is (\w+) of the (\w+)\.")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def solve(facts: Sequence[str], question: str) -> set[str]:
    """All answers that the facts allow: one, unless the question is ambiguous; none, if they do not tell."""
    if match := re.fullmatch(r"Where is (?:the )?(\w+)\?", question):
        return set(_rooms(facts).get(match[1], [])[-1:])
    if match := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        rooms = _rooms(facts)[match[1]]
        at = len(rooms) - 1 - rooms[::-1].index(match[2])
        return {rooms[at - 1]} if at else set()
    if match := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        return _neighbours(facts, match[2], match[1])
    if match := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
        return _neighbours(facts, match[1], OPPOSITE[match[2]])
    gifts = [match.groups() for fact in facts if (match := GIVE.fullmatch(fact))]
    return set(_gift(gifts, question))


def _neighbours(facts: Sequence[str], place: str, direction: str) -> set[str]:
    relations = [match.groups() for fact in facts if (match := RELATION.fullmatch(fact))]
    return {a for a, way, b in relations if (b, way) == (place, direction)} | {
        b for a, way, b in relations if (a, OPPOSITE[way]) == (place, direction)
    }


def _gift(gifts: list[tuple[str, ...]], question: str) -> list[str]:
    """The last gift that the question fits."""
    forms = {
        r"What did (?P<a>\w+) give to (?P<r>\w+)\?": 1,
        r"Who gave the (?P<o>\w+)\?": 0,
        r"Who gave the (?P<o>\w+) to (?P<r>\w+)\?": 0,
        r"Who did (?P<a>\w+) give the (?P<o>\w+) to\?": 2,
        r"Who received the (?P<o>\w+)\?": 2,
    }
    for form, asked in forms.items():
        if match := re.fullmatch(form, question):
            wanted = match.groupdict()
            fits = [
                gift
                for gift in gifts
                if all(wanted.get(key, value) == value for key, value in zip("aor", gift, strict=True))
            ]
            return [gift[asked] for gift in fits[-1:]]
    raise AssertionError(question)


def _rooms(facts: Sequence[str]) -> dict[str, list[str]]:
    """The rooms that each person and thing is known to have been in, in order, none twice in a row."""
    rooms: dict[str, list[str]] = {}
    holder: dict[str, str] = {}

    def enter(who: str, room: str) -> None:
        if rooms.setdefault(who, [])[-1:] != [room]:
            rooms[who].append(room)

    for fact in facts:
        if match := MOVE.fullmatch(fact):
            person, room = match.groups()
            for who in (person, *(thing for thing, owner in holder.items() if owner == person)):
                enter(who, room)
        elif match := TAKE.fullmatch(fact):
            person, thing = match.groups()
            holder[thing] = person
            if person in rooms:
                enter(thing, rooms[person][-1])
        elif match := DROP.fullmatch(fact):
            person, thing = match.groups()
            assert holder.pop(thing, person) == person, f"{person} drops what another has: {fact}"
            if person in rooms:
                enter(thing, rooms[person][-1])
        elif match := GIVE.fullmatch(fact):
            person, thing, receiver = match.groups()
            assert holder.get(thing, person) == person, f"{person} gives what another has: {fact}"
            holder[thing] = receiver
        else:
            raise AssertionError(f"not a statement of tasks 1, 2, 3 or 5: {fact}")
    return rooms
