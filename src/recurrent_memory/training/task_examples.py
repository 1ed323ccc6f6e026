"""Examples of a task: a text of so many segments with its facts in it, and the question in a segment of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigError
from ..forward import IGNORE
from ..tasks.alone import draw_alone
from ..tasks.base import AsksMore, Sample, Task
from ..tasks.noise_window import Boundary, NoiseWindow, SampleText
from ..tasks.pieces import PieceEncoder, plain_tokenizer
from ..tasks.placing import TRIES, draw_placed
from .examples import Example, without_answer
from .passages import HardPassages, from_anywhere, phrases_of_facts

Form = Literal["text", "class", "target"]
"""How a model answers: it writes on (decoders), names a class (classifiers), or has a decoder of its own (T5)."""

_CUT_SHORT_TRIES = 200


@dataclass(frozen=True)
class TaskExamples:
    """Draws examples of tasks; see `SegmentedExamples`.

    The text has S·(n − 1) + 1 … S·n tokens, n being the number of segments asked for; the question comes after it, in a
    segment of its own, as `ask` puts it. Facts that are a text alone fill all n segments.

    Args:
        tasks: One of them is drawn for each example.
        noise: Documents of each source; sources are drawn evenly, and a text begins anywhere in a document.
        tokenizer: The model's.
        segment_length: S.
        form: How the model answers.
        partial: How often the last segment of the text is cut short, 0…1.
        boundary: Whether a fact may stand after any sentence, or any word.
        hard_noise: How often the noise of an example is made of passages around words that facts are made of (hard negatives),
            0…1.
        unanswerable: How often the facts of an example are left out of its text, 0 ≤ … < 1. What is right then is one answer as often
            as any other, so that a model keeps knowing nothing apart from every answer. Else it may let one answer be what an
            empty memory says, write nothing for it, and lose it to the first words that look like another.
        max_tokens: The most tokens of a text; None: as many as its segments hold.
        question_apart: Whether the question has a segment of its own; False: it goes on in the text's last segment, as far as
            there is room, where the model sees what is there as well as its memory.
        ends: Whether a model that writes on learns to end after its answer. From the beginning it may learn the answer more slowly
            for it (docs/decisions/0024-pairs-of-few-keys-at-first.md).
        questions: How many different questions are asked about each text, which is read once for all of them; fewer, where its
            facts do not give as many.

    Raises:
        ConfigError: if a classifier is to learn a task with open answers, facts that stand alone are to be left out or to have
            a noise of some kind, or a task does not ask several questions about the same facts.
        InputError: if there is to be hard noise, and the noise has no word of any fact.

    Example:
        >>> examples = TaskExamples((load_task("detect"),), noise, tokenizer, 64)  # doctest: +SKIP
        >>> examples.draw(random.Random(0), num_segments=4)["text_length"]  # doctest: +SKIP
        256
    """

    tasks: Sequence[Task]
    noise: Sequence[Sequence[str]]
    tokenizer: Any
    segment_length: int
    form: Form = "text"
    partial: float = 0.25
    boundary: Boundary = "sentence"
    hard_noise: float = 0.0
    unanswerable: float = 0.0
    max_tokens: int | None = None
    question_apart: bool = True
    ends: bool = True
    questions: int = 1
    classes: tuple[str, ...] = field(init=False)
    _tokenizer: Any = field(init=False, repr=False, compare=False)
    _encoder: PieceEncoder = field(init=False, repr=False, compare=False)
    _hard: HardPassages | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_noise()
        for task in self.tasks:
            if self.questions > 1 and not isinstance(task, AsksMore):
                raise ConfigError(
                    f"questions={self.questions}: task {task.name!r} asks one question about its facts; leave questions out"
                )
        made = {
            "classes": answers_of(self.tasks) if self.form == "class" else (),
            "_tokenizer": plain_tokenizer(self.tokenizer),
            "_encoder": PieceEncoder(self.tokenizer),
            "_hard": HardPassages(self.noise, phrases_of_facts(self.tasks)) if self.hard_noise else None,
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The name of each task."""
        return tuple(task.name for task in self.tasks)

    def draw(self, rng: random.Random, num_segments: int) -> Example:
        """An example; what is random in it comes from `rng`.

        Raises:
            ConfigError: if the facts of a task do not fit into so many segments.
        """
        task = self.tasks[rng.randrange(len(self.tasks))]
        example = self._draw_of(task, rng, num_segments)
        return {**example, "task": task.name} if len(self.tasks) > 1 else example

    def _draw_of(self, task: Task, rng: random.Random, num_segments: int) -> Example:
        whole = self.segment_length * num_segments
        length = most = whole if self.max_tokens is None else min(whole, self.max_tokens)
        if task.placement == "alone":
            sample, text = draw_alone(task, self._encoder, most, rng)
            return self.all_asked(text.slice(0, most).tolist(), self.endings(task, sample, rng))
        if rng.random() < self.partial:
            length -= rng.randrange(min(self.segment_length, most))
        for tokens, tries in ((length, _CUT_SHORT_TRIES), (most, TRIES)):  # in a text cut short the facts may not fit
            try:
                sample, targets, limit = draw_placed(task, self._encoder, tokens, rng, tries)
            except ConfigError:
                continue
            window = NoiseWindow(self._noise(rng), self._tokenizer, piece_chars=8 * tokens)
            if self.unanswerable and rng.random() < self.unanswerable:
                asked = self.all_asked(window.slice(0, tokens).tolist(), self.endings(task, sample, rng))
                return without_answer(asked)
            text = SampleText(window, sample.facts, targets, self.boundary, limit)
            return self.all_asked(text.slice(0, tokens).tolist(), self.endings(task, sample, rng))
        raise ConfigError(
            f"task {task.name!r}: its facts do not fit into {num_segments} segments of {self.segment_length} tokens"
            f"{'' if self.max_tokens is None else f', of which {most} at most have text'}; "
            "begin with more segments, or take longer ones"
        )

    def begin(
        self, rng: random.Random, first_tokens: int, places: Callable[[int], list[int]]
    ) -> tuple[SampleText, list[Example], list[int]]:
        """A text without end, with the facts of a sample in it.

        Args:
            rng: Draws all of it.
            first_tokens: Each fact stands in so many tokens after a place of its own.
            places: Gives these places, of as many facts, in order; facts with the same one stand in the same tokens. Of facts
                that begin a text they are 0 (`check_waits`).

        Returns:
            The text, its questions (see `endings`), and the places.

        Raises:
            ConfigError: if no sample fits, or facts are all of theirs.
        """
        task = self.tasks[rng.randrange(len(self.tasks))]
        if task.placement == "alone":
            raise ConfigError(
                f"carried: the text of {task.name!r} is its facts alone, and does not go on; leave carried out"
            )
        sample, targets, limit = draw_placed(task, self._encoder, first_tokens, rng)
        starts = places(len(sample.facts))
        window = NoiseWindow(self._noise(random.Random(rng.getrandbits(64))), self._tokenizer)
        if targets:  # else the facts begin the text
            targets = [start + target for start, target in zip(starts, targets, strict=True)]
        limits = None if limit is None else [start + limit for start in starts]
        text = SampleText(window, sample.facts, targets, self.boundary, limits)
        return text, self.endings(task, sample, rng), starts

    def ending(self, sample: Sample) -> Example:
        """The question, the answer after it where the model writes on, and the labels of both."""
        question = self._ids(sample.question)
        if self.form == "class":
            return {"input_ids": question, "labels": self.classes.index(sample.answer)}
        if self.form == "target":
            return {"input_ids": question, "labels": [*self._ids(sample.answer), *self._end()]}
        answer, end = self._ids(f" {sample.answer}"), self._end()
        learned = answer + (end if self.ends else [IGNORE] * len(end))
        return {"input_ids": question + answer + end, "labels": [IGNORE] * len(question) + learned}

    def asked(self, text: list[int], ending: Example) -> Example:
        """A text with its ending."""
        labels = ending["labels"]
        if self.form == "text" and not isinstance(labels, int):
            labels = [IGNORE] * len(text) + labels
        length = len(text) if self.question_apart else 0
        return {"input_ids": text + ending["input_ids"], "labels": labels, "text_length": length}

    def endings(self, task: Task, sample: Sample, rng: random.Random) -> list[Example]:
        """A question with its answer, and as many others about the same facts as are wanted."""
        others = (
            task.ask_more(rng, sample, self.questions - 1) if self.questions > 1 and isinstance(task, AsksMore) else []
        )
        return [self.ending(each) for each in (sample, *others)]

    def other_endings(self, rng: random.Random) -> list[Example]:
        """Questions about facts that are in no text; see `endings`."""
        task = self.tasks[rng.randrange(len(self.tasks))]
        return self.endings(task, task.draw(rng), rng)

    def all_asked(self, text: list[int], endings: Sequence[Example]) -> Example:
        """A text with several endings."""
        first, *others = (self.asked(text, ending) for ending in endings)
        return {**first, "more": others} if others else first

    def _check_noise(self) -> None:
        for task in self.tasks:
            if task.placement != "alone":
                if not self.noise:
                    raise ConfigError(
                        f"noise is empty, and the facts of {task.name!r} are to be hidden in it; give task.noise"
                    )
            elif self.hard_noise or self.unanswerable:
                raise ConfigError(
                    f"hard_noise={self.hard_noise}, unanswerable={self.unanswerable}: the text of {task.name!r} is its facts alone; "
                    "leave them out"
                )

    def _noise(self, rng: random.Random) -> Iterator[str]:
        if self._hard is not None and rng.random() < self.hard_noise:
            return self._hard.draw(rng)
        return from_anywhere(self.noise, rng)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _end(self) -> list[int]:
        """What ends an answer: the end of the text, or of the line."""
        end = self.tokenizer.eos_token_id
        return [end] if end is not None else self._ids("\n")


def answers_of(tasks: Sequence[Task]) -> tuple[str, ...]:
    """All answers of some tasks, each once: the classes of a classifier.

    Raises:
        ConfigError: if a task has open answers.
    """
    names: dict[str, None] = {}
    for task in tasks:
        if task.answers is None:
            raise ConfigError(f"task {task.name!r} has open answers, which no classifier can name; take a decoder")
        names.update(dict.fromkeys(task.answers))
    return tuple(names)
