"""Accuracy of a task against the length of the text: which texts are read together, and what they are asked.

Texts of one group are read side by side, a segment at a time. They share their noise: until its first fact comes a text
is its noise, so one lane reads the noise for all, and each text goes on from a copy of that lane's state. The result is
that of reading every text alone. Where the facts begin the text, all lengths of it are asked in one pass.

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
        number: Names the group, and what is random about its noise.
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
        """Tokens of its texts, whether read apart or together."""
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


@dataclass(slots=True)
class Standing:
    """How far a group is: enough to go on from.

    Args:
        index: The next segment.
        state: Of the lanes, in order; nothing is pending.
        lanes: The sample of each lane, by its place in the group; -1 is the noise.
        rows: What has been answered.
    """

    index: int
    state: MemoryState
    lanes: list[int]
    rows: list[Row] = field(default_factory=list[Row])


class GroupReading:
    """Reads a group.

    Args:
        group: What to read.
        model: The model.
        tokenizer: Its tokenizer.
        task: Makes the samples.
        noise: What they are hidden in.
        seed: All that is random is a function of it, of the group and of the sample.
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
        rng = random.Random(f"{seed}/{group.name}/noise")
        self._window = NoiseWindow(noise.from_char(rng.randrange(noise.num_chars)), tokenizer)
        self._plain = SampleText(self._window, (), ())
        encoder = PieceEncoder(tokenizer)
        self._samples: list[Sample] = []
        self._texts: list[SampleText] = []
        for number in group.samples:
            where = group.lengths[0]
            kind = "" if task.placement == "first" else f"/{where}"
            sample, targets, limit = draw_placed(
                task, encoder, where, random.Random(f"{seed}/{task.name}{kind}/{number}")
            )
            self._samples.append(sample)
            self._texts.append(SampleText(self._window, sample.facts, targets, boundary, limit))
        self._length = model.memory_config.segment_length
        self._joins = [text.first_change // self._length for text in self._texts]

    def begin(self) -> Standing:
        """Before the first segment."""
        return Standing(0, self._model.initial_state(1), [-1])

    @property
    def num_segments(self) -> int:
        """Of the longest text."""
        return -(-self.group.lengths[-1] // self._length)

    @torch.no_grad()
    def advance(self, standing: Standing) -> int:
        """Read a segment of every lane, and ask what is to be asked in it.

        Returns:
            The tokens that went through the model.
        """
        index, length = standing.index, self._length
        start = index * length
        self._join(standing)
        asked = [at for at in self.group.lengths if start < at <= start + length]
        width = min(length, self.group.lengths[-1] - start)
        ids = self._ids(standing.lanes, start, start + width)
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
            self._ids([-1, *(n for n, join in enumerate(self._joins) if join <= index)], start, start + self._length)
            self._forget(index)

    def _forget(self, index: int) -> None:
        if index % 64 == 0:
            texts = [self._plain, *self._texts]
            self._window.forget(min(text.needs((index + 1) * self._length) for text in texts))

    def _join(self, standing: Standing) -> None:
        """Lanes of the texts that begin to differ from the noise; the noise's lane ends with the last of them."""
        new = [number for number, join in enumerate(self._joins) if join == standing.index]
        if new:
            noise = standing.lanes.index(-1)
            standing.state = MemoryState.cat([standing.state, standing.state.index([noise] * len(new))])
            standing.lanes += new
        if -1 in standing.lanes and all(join <= standing.index for join in self._joins):
            kept = [place for place, lane in enumerate(standing.lanes) if lane >= 0]
            standing.state, standing.lanes = standing.state.index(kept), [standing.lanes[place] for place in kept]

    def _folded(self, ids: Int[Tensor, "B T"], state: MemoryState) -> MemoryState:
        return self._model.step(Segment.full(ids), state, return_hidden=False)[1].detach()

    def _text(self, lane: int) -> SampleText:
        return self._plain if lane < 0 else self._texts[lane]

    def _ids(self, lanes: Sequence[int], start: int, stop: int) -> Int[Tensor, "B T"]:
        ids = np.stack([self._text(lane).slice(start, stop) for lane in lanes])
        return torch.from_numpy(ids).to(self._model.device)

    def _ask(self, standing: Standing, ids: Int[Tensor, "B T"], at: int) -> list[Row]:
        places = [place for place, lane in enumerate(standing.lanes) if lane >= 0]
        numbers = [standing.lanes[place] for place in places]
        samples = [self._samples[number] for number in numbers]
        answers: list[list[Answer]] = []
        for before in (standing.state.index(places), self._model.initial_state(len(places))):
            after = self._folded(ids[places], before)
            answers.append(ask(self._model, self._tokenizer, after, [sample.question for sample in samples]))
        return [
            Row(
                length=at,
                sample=self.group.samples[number],
                num_facts=len(sample.facts),
                fact_token=self._texts[number].fact_spans[max(sample.supporting, default=-1)][0],
                question=sample.question,
                target=sample.answer,
                answer=kept.text,
                probability=round(kept.probability, 6),
                right=self._score(kept.text, sample),
                reset_answer=reset.text,
                reset_right=self._score(reset.text, sample),
            )
            for number, sample, kept, reset in zip(numbers, samples, *answers, strict=True)
        ]
