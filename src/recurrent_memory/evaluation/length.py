"""Accuracy of a task against the length of the text: which texts are read together, and what they are asked.

Texts of one group are read side by side, a segment at a time. Each has a noise of its own: what a text says by chance may
cost a memory its fact, so that texts with the same noise are right or wrong together, and count for less than their number.
The result is that of reading every text alone. Where the facts begin the text, all lengths of it are asked in one pass.

A question is put as `ask` puts it: what is pending is folded, the question stands in a segment of its own. Beside it
the same is asked of a memory that was reset before the last segment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ConfigError
from ..inference.asking import Answer, ask
from ..model import RecurrentMemoryModel
from ..segments import Segment
from ..state import MemoryState
from ..tasks.alone import FactsText, draw_alone
from ..tasks.base import Sample, Task
from ..tasks.noise_source import NoiseSource
from ..tasks.noise_window import Boundary, NoiseWindow, SampleText
from ..tasks.pieces import PieceEncoder
from ..tasks.placing import draw_placed

Score = Callable[[str, Sample], bool]


@dataclass(frozen=True, slots=True)
class Group:
    """Texts that are read together.

    Args:
        number: Names the group.
        samples: The numbers of the samples.
        lengths: Tokens at which each of them is asked, ascending; one, unless the facts begin the text.
    """

    number: int
    samples: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.lengths[-1]}-{self.number}"

    @property
    def num_tokens(self) -> int:
        """Tokens of its texts."""
        return len(self.samples) * self.lengths[-1]


@dataclass(frozen=True, slots=True)
class Row:
    """What one text was asked, and what was answered.

    Args:
        length: Tokens of the text.
        sample: The number of the sample.
        num_facts: Facts in it.
        fact_token: The first token of the last fact that the answer needs; of the last of all, if that is not known.
        question: What was asked.
        target: The right answer.
        answer: What the model said.
        probability: How sure it was.
        right: Whether that is right.
        reset_answer: What it said with its memory reset before the last segment.
        reset_right: Whether that is right.
    """

    length: int
    sample: int
    num_facts: int
    fact_token: int
    question: str
    target: str
    answer: str
    probability: float
    right: bool
    reset_answer: str
    reset_right: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plan_groups(task: Task, lengths: Sequence[int], samples: Sequence[int], lanes: int) -> list[Group]:
    """The groups, the cheapest first.

    Args:
        task: The task; where its facts begin the text, all lengths are asked in one pass.
        lengths: Tokens.
        samples: How many for each length.
        lanes: Texts in a group.

    Raises:
        ConfigError: if the numbers of lengths and of samples differ, or one is below 1.
    """
    if len(lengths) != len(samples) or not lengths or min(*lengths, *samples, lanes) < 1:
        raise ConfigError(
            f"lengths={list(lengths)}, samples={list(samples)}, lanes={lanes}: give one number of samples for each "
            "length, all at least 1"
        )
    wanted = dict(zip(lengths, samples, strict=True))
    ordered = sorted(wanted)
    alike: dict[
        tuple[int, ...], list[int]
    ] = {}  # samples that are read together, by the lengths that they are asked at
    for number in range(max(samples)):
        asked = tuple(length for length in ordered if wanted[length] > number)
        for key in [asked] if task.placement == "first" else [(length,) for length in asked]:
            alike.setdefault(key, []).append(number)
    groups = [
        Group(numbers[first], tuple(numbers[first : first + lanes]), key)
        for key, numbers in alike.items()
        for first in range(0, len(numbers), lanes)
    ]
    return sorted(groups, key=lambda group: (group.num_tokens, group.number))


def check_lengths(task: Task, tokenizer: Any, lengths: Sequence[int]) -> None:
    """Find out whether the task has samples for texts of these lengths, before any is read.

    Raises:
        ConfigError: if for one of them it has none.
    """
    encoder = PieceEncoder(tokenizer)
    draw = draw_alone if task.placement == "alone" else draw_placed
    for length in lengths:
        draw(task, encoder, length, random.Random(0))


@dataclass(slots=True)
class Standing:
    """How far a group is: enough to go on from.

    Args:
        index: The next segment.
        state: Of the texts, in order; nothing is pending.
        rows: What has been answered.
    """

    index: int
    state: MemoryState
    rows: list[Row] = field(default_factory=list[Row])


class GroupReading:
    """Reads a group.

    Args:
        group: What to read.
        model: The model.
        tokenizer: Its tokenizer.
        task: Makes the samples.
        noise: What they are hidden in.
        seed: All that is random is a function of it, of the sample and, unless the facts begin the text, of the length.
        boundary: Where facts may stand.
        score: Whether an answer is right.
    """

    def __init__(
        self,
        group: Group,
        model: RecurrentMemoryModel,
        tokenizer: Any,
        task: Task,
        noise: NoiseSource,
        *,
        seed: int,
        boundary: Boundary,
        score: Score,
    ) -> None:
        self.group, self._model, self._tokenizer, self._score = group, model, tokenizer, score
        encoder = PieceEncoder(tokenizer)
        self._samples: list[Sample] = []
        self._texts: list[SampleText | FactsText] = []
        for number in group.samples:
            where = group.lengths[0]
            name = f"{seed}/{task.name}{'' if task.placement == 'first' else f'/{where}'}/{number}"
            if task.placement == "alone":
                sample, alone = draw_alone(task, encoder, where, random.Random(name))
                self._samples.append(sample)
                self._texts.append(alone)
                continue
            sample, targets, limit = draw_placed(task, encoder, where, random.Random(name))
            begin = random.Random(f"{name}/noise").randrange(noise.num_chars)
            window = NoiseWindow(noise.from_char(begin), tokenizer)
            self._samples.append(sample)
            self._texts.append(SampleText(window, sample.facts, targets, boundary, limit))
        self._length = model.memory_config.segment_length

    def begin(self) -> Standing:
        """Before the first segment."""
        return Standing(0, self._model.initial_state(len(self._texts)))

    @property
    def num_segments(self) -> int:
        """Of the longest text."""
        return -(-self.group.lengths[-1] // self._length)

    @torch.no_grad()
    def advance(self, standing: Standing) -> int:
        """Read a segment of every text, and ask what is to be asked in it.

        Returns:
            The tokens that went through the model.
        """
        index, length = standing.index, self._length
        start = index * length
        asked = [at for at in self.group.lengths if start < at <= start + length]
        width = min(length, self.group.lengths[-1] - start)
        ids = self._ids(start, start + width)
        num_tokens = ids.numel()
        for at in asked:
            standing.rows += self._ask(standing, ids[:, : at - start], at)
        if index + 1 < self.num_segments:
            standing.state = self._folded(ids, standing.state)
        standing.index += 1
        self._forget(index)
        return num_tokens

    def skip_to(self, standing: Standing) -> None:
        """Go through the texts up to where an interrupted reading was, without the model."""
        for index in range(standing.index):
            start = index * self._length
            self._ids(start, start + self._length)
            self._forget(index)

    def _forget(self, index: int) -> None:
        if index % 64 == 0:
            for text in self._texts:
                text.forget((index + 1) * self._length)

    def _folded(self, ids: Int[Tensor, "B T"], state: MemoryState) -> MemoryState:
        return self._model.step(Segment.full(ids), state, return_hidden=False)[1].detach()

    def _ids(self, start: int, stop: int) -> Int[Tensor, "B T"]:
        return torch.from_numpy(np.stack([text.slice(start, stop) for text in self._texts])).to(self._model.device)

    def _ask(self, standing: Standing, ids: Int[Tensor, "B T"], at: int) -> list[Row]:
        questions = [sample.question for sample in self._samples]
        answers: list[list[Answer]] = []
        for before in (standing.state, self._model.initial_state(len(questions))):
            after = self._folded(ids, before)
            answers.append(ask(self._model, self._tokenizer, after, questions))
        return [
            Row(
                length=at,
                sample=number,
                num_facts=len(sample.facts),
                fact_token=text.fact_spans[max(sample.supporting, default=-1)][0],
                question=sample.question,
                target=sample.answer,
                answer=kept.text,
                probability=round(kept.probability, 6),
                right=self._score(kept.text, sample),
                reset_answer=reset.text,
                reset_right=self._score(reset.text, sample),
            )
            for number, sample, text, kept, reset in zip(
                self.group.samples, self._samples, self._texts, *answers, strict=True
            )
        ]
