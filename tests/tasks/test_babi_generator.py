"""Stories made on the fly read, and are distributed, as the published ones; their answers follow from their facts."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from recurrent_memory.errors import ConfigError, InputError
from recurrent_memory.tasks.babi import load_babi_samples, stories
from recurrent_memory.tasks.babi.world import OBJECTS, World, say, understood
from recurrent_memory.tasks.base import AsksMore, Sample
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.tasks.whereabouts import PEOPLE
from tasks.babi_reader import solve

BABI = Path(__file__).parents[3] / "shared/data/babi"
NAMES = ("qa1", "qa2", "qa3", "qa4", "qa5")
needs_babi = pytest.mark.skipif(not BABI.exists(), reason="needs ../shared/data/babi")

NAME = r"\b(?:Mary|John|Daniel|Sandra|Fred|Jeff|Bill)\b"
PLACE = r"\b(?:bathroom|hallway|garden|office|bedroom|kitchen)\b"
THING = r"\b(?:apple|football|milk)\b"


@cache
def real(name: str) -> tuple[Sample, ...]:
    """Train and test together: about 10,000 questions, 2,000 of task 3."""
    train = BABI / "qa3_three-supporting-facts_train.1k.txt" if name == "qa3" else BABI / "en-10k"
    return load_babi_samples(name, str(train), "train") + load_babi_samples(name, str(BABI / "en-10k"), "test")


@cache
def made(name: str) -> tuple[Sample, ...]:
    rng, task = random.Random(f"made {name}"), load_task(name)
    return tuple(task.draw(rng) for _ in range(1500))


def templates(samples: Sequence[Sample]) -> set[str]:
    sentences = {text for sample in samples for text in (*sample.facts, sample.question)}
    return {re.sub(NAME, "NAME", re.sub(PLACE, "PLACE", re.sub(THING, "THING", text))) for text in sentences}


def words(samples: Sequence[Sample]) -> set[str]:
    return {word for s in samples for text in (*s.facts, s.question, s.answer) for word in re.findall(r"\w+", text)}


@pytest.mark.data
@needs_babi
@pytest.mark.parametrize("name", NAMES)
def test_sentences_and_words_are_those_of_the_published_files(name: str) -> None:
    assert templates(made(name)) == templates(real(name))
    assert words(made(name)) == words(real(name))
    assert {sample.answer for sample in real(name)} == set(load_task(name).answers or ())


@pytest.mark.data
@needs_babi
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_its_own_answers_the_published_questions(name: str) -> None:
    wrong = [sample for sample in real(name) if solve(sample.facts, sample.question) != {sample.answer}]
    # The files of task 5 ask what someone gave who has given another thing since, and expect the older answer.
    assert len(wrong) <= (0.005 * len(real(name)) if name == "qa5" else 0), wrong[:3]
    assert {sample.question.split()[:2] == ["What", "did"] for sample in wrong} <= {True}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_reader_answers_all_questions_made(name: str) -> None:
    for sample in made(name):
        assert solve(sample.facts, sample.question) == {sample.answer}, sample


@pytest.mark.parametrize("name", NAMES)
def test_the_supporting_facts_are_enough(name: str) -> None:
    for sample in made(name):
        facts = [sample.facts[index] for index in sorted(sample.supporting)]
        if name == "qa3":  # moves tell of a thing only if it was taken before them; the files do not list the taking
            thing = sample.question.split()[3]
            person = facts[-1].split()[0]
            facts = [f"{person} got the {thing}.", *facts]
        assert solve(facts, sample.question) == {sample.answer}, sample


@pytest.mark.parametrize("name", NAMES)
def test_more_questions_are_asked_about_the_same_facts(name: str) -> None:
    task, most, rng = load_task(name), 0, random.Random(1)
    assert isinstance(task, AsksMore)
    for sample in made(name)[:300]:
        others = task.ask_more(rng, sample, 3)
        assert len({sample.question, *(other.question for other in others)}) == 1 + len(others) <= 4
        most = max(most, len(others))
        for other in others:
            assert (other.facts, other.answers) == (sample.facts, sample.answers)
            assert solve(other.facts, other.question) == {other.answer}, other
            assert templates([Sample((), other.question, "")]) <= templates(made(name))
    assert most == (2 if name == "qa2" else 3)  # there are three things


def test_what_is_said_is_understood() -> None:
    rng = random.Random(2)
    world = World(stories.GIVERS, {"go": 1, "take": 1, "drop": 1, "give": 4}, rng)
    events = [world.step() for _ in range(500)]
    assert [understood(say(event, rng, 0.5, 0.5)) for event in events] == [
        replace(event, place=event.place if event.kind == "go" else "") for event in events
    ]
    for wrong in ("Mary sang.", "Mary went to the garden", "The garden is north of the office."):
        with pytest.raises(InputError, match="is no statement"):
            understood(wrong)
    with pytest.raises(InputError, match="is no question about a story"):
        stories.ask_more_of_a_story(rng, Sample((), "Why?", "so"), 1)


MEASURES: dict[str, Callable[[Sample], object]] = {
    "answer": lambda sample: sample.answer,
    "question": lambda sample: min(templates([Sample((), sample.question, "")])),
    "facts before the question": lambda sample: min(len(sample.facts).bit_length() * 4, 40) + len(sample.facts) // 12,
    "distance of the first support": lambda sample: min(len(sample.facts) - sample.supporting[0], 8),
    "distance of the last support": lambda sample: min(len(sample.facts) - sample.supporting[-1], 30) // 2,
    "form of the last fact": lambda sample: min(templates([Sample((sample.facts[-1],), "?", "")]) - {"?"}),
}


def distance(a: Sequence[Sample], b: Sequence[Sample], measure: Callable[[Sample], object]) -> float:
    """Total variation: the share of samples that would have to be others."""
    left, right = Counter(map(measure, a)), Counter(map(measure, b))
    return sum(abs(left[key] / len(a) - right[key] / len(b)) for key in left | right) / 2


# With 1,500 samples, and 2,000 published ones of task 3 in 400 stories, chance alone makes up to 0.06 of up to 16 values;
# that the published files do not draw names quite evenly (task 5: Mary 18.5 %, Jeff 14.5 %) makes 0.05. A generator with
# another rule is further off in at least one measure, as the test after the next shows.
FAR = 0.09


@pytest.mark.data
@needs_babi
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_distributed_as_the_published_ones(name: str, measure: str) -> None:
    assert distance(made(name), real(name), MEASURES[measure]) < FAR


@pytest.mark.data
@needs_babi
@pytest.mark.parametrize(
    # A window of 8 in task 1 makes no difference above chance in these measures (0.06).
    ("name", "window"),
    [("qa1", 3), ("qa2", 3), ("qa2", 8), ("qa3", 3), ("qa3", 8), ("qa5", 3), ("qa5", 8)],
)
def test_another_rule_would_be_noticed(name: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "_WINDOW_STATEMENTS", window)
    rng, task = random.Random(1), load_task(name)
    other = [task.draw(rng) for _ in range(600)]
    assert max(distance(other, real(name), measure) for measure in MEASURES.values()) > FAR


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_function_of_the_seed(name: str) -> None:
    task = load_task(name)
    first, again, other = ([task.draw(rng) for _ in range(5)] for rng in map(random.Random, (3, 3, 4)))
    assert first == again != other


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_balanced(name: str) -> None:
    """A model that guesses is right as often as the docs say: every place, and every person and thing, is drawn alike."""
    counts = Counter(sample.answer for sample in made(name))
    for kind in (
        counts.keys() & {"apple", "football", "milk"},
        counts.keys() - {"apple", "football", "milk"},
    ):
        mean = sum(counts[answer] for answer in kind) / max(1, len(kind))
        assert all(abs(counts[answer] - mean) < 4 * mean**0.5 for answer in kind), counts


@pytest.mark.parametrize(("name", "order"), [("qa1", PEOPLE), ("qa2", OBJECTS), ("qa3", OBJECTS), ("qa5", OBJECTS)])
def test_of_two_that_could_be_asked_about_an_uneven_task_prefers_the_first(name: str, order: Sequence[str]) -> None:
    rng, task = random.Random(0), load_task(name, uneven=1e6)
    checked = 0
    for _ in range(1000):
        sample = task.draw(rng)
        assert isinstance(task, AsksMore)
        assert task.ask_more(rng, sample, 3) == []
        even = load_task(name)
        assert isinstance(even, AsksMore)
        others = [sample, *even.ask_more(rng, sample, 9)]
        named = [next((word for word in order if word in re.findall(r"\w+", other.question)), None) for other in others]
        if named[0] is None or len({*named} - {None}) < 2:
            continue
        checked += 1
        assert named[0] == min((word for word in named if word), key=order.index)
    assert checked > 20


def test_an_uneven_task_tells_the_same_stories() -> None:
    facts = [
        [load_task("qa1", **options).draw(random.Random(seed)).facts[0] for seed in range(20)]
        for options in ({}, {"uneven": 4})
    ]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("options", [{"uneven": 0.5}, {"uneven": float("nan")}, {"uneven": 4, "source": "folder"}])
def test_what_cannot_be_uneven_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="uneven"):
        load_task("qa1", **options)
    with pytest.raises(ConfigError, match="directions"):
        load_task("qa4", uneven=4)
