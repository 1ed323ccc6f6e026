"""Carried lanes: texts without end, each with the facts of a sample somewhere in it, which are asked for again and again.

A lane keeps its memory from step to step, cut from the graph, so a model learns from memories that are far older than the
segments that gradients go back through. A lane ends at random, or when its answer was wrong: then what was said is gone,
and nothing more is to be learned from it.

What a lane reads is a function of its seed, of how many lives it has had and of how far it has come: that is all that a
checkpoint keeps of it, besides its memory.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, RecipeError
from ..model import RecurrentMemoryModel
from ..state import MemoryState
from .bptt import Outcome
from .examples import Example, collate, unlabelled, without_answer
from .task_examples import TaskExamples

_SKIPPED_TOKENS = 4096
_OfLanes = TypeVar("_OfLanes", Tensor, MemoryState)


@dataclass(frozen=True, slots=True)
class Carried:
    """How lanes are carried.

    Args:
        lifetime: The mean number of segments that a lane lives for, where nothing else ends it.
        drop_lost: Whether a lane of which an answer was wrong begins a new text.
        first_segments: The facts stand in so many first segments; they are asked for after these, and then in every step.
        wait: Whether the facts come only after a while, on average as long as they are then asked for: else a lane's memory is
            always new when they come, and what stands in it after thousands of segments without them is never seen. What is
            right until then is one answer as often as another; see `asked_early`.
        spread: Whether mean lifetimes go, evenly in their logarithm, from one step for the first lane up to `lifetime` for the
            last, so that facts of every age are asked for, and writing them is not forgotten for keeping them; else all lanes have
            the same.
        apart: Whether a lane that waits does so before each further fact again, so that one is held for long when the next comes:
            else all facts of a sample stand in `first_segments` segments, as they hardly ever do in a long text. With `wait` only.
        asked_early: How often, of its steps, a lane that waits is asked, 0…1. It is asked about facts that are drawn anew each
            time, and are in no text. None: in every step, and about the facts that it will be told, so that for as long as it
            waits one answer is right that nobody can know: the longer the wait, the more a model learns to guess it.
        ordinary: The share of the lanes that begin anew in every step, as examples that are not carried do: where nothing is said
            in most steps, what is hard to write, such as a fact that the end of a segment cuts in two, is forgotten.
        keep: The weight of the loss that a memory stays as it is in steps in which nothing is said, but for a lane's first one
            (`keeping.kept_loss`, its mean over segments).

    Raises:
        ConfigError: if a number is below 1, `keep` below 0, `ordinary` or `asked_early` no share, or `apart` or `asked_early` without
            `wait`.
    """

    lifetime: float = 1000.0
    drop_lost: bool = True
    first_segments: int = 4
    spread: bool = True
    keep: float = 0.0
    wait: bool = False
    ordinary: float = 0.0
    apart: bool = False
    asked_early: float | None = None

    def __post_init__(self) -> None:
        if self.apart and not self.wait:
            raise ConfigError("apart: facts come apart in carried lanes that wait; give wait: true, or leave apart out")
        if self.asked_early is not None and not (self.wait and 0 <= self.asked_early <= 1):
            raise ConfigError(
                f"asked_early={self.asked_early}: a share, 0 to 1, of the steps in which carried lanes wait; give wait: true, or "
                "leave it out"
            )
        if not 0 <= self.ordinary < 1:
            raise ConfigError(f"ordinary={self.ordinary}, a share of the carried lanes, must be at least 0 and below 1")
        if not self.keep >= 0:
            raise ConfigError(f"keep={self.keep} of carried lanes must be at least 0; 0 is without")
        if self.lifetime < 1 or self.first_segments < 1:
            raise ConfigError(
                f"lifetime={self.lifetime} and first_segments={self.first_segments} of carried lanes must be at least 1"
            )

    def chance_to_end(self, lane: int, num_lanes: int, num_segments: int) -> float:
        """How likely it is, in a step, that a lane ends.

        Args:
            lane: Its place, 0 … num_lanes − 1.
            num_lanes: How many there are.
            num_segments: Segments of a step.

        Example:
            >>> [round(Carried(lifetime=400).chance_to_end(lane, 3, 4), 6) for lane in range(3)]
            [1.0, 0.1, 0.01]
            >>> [round(Carried(lifetime=400, ordinary=0.4).chance_to_end(lane, 5, 4), 6) for lane in range(5)]
            [1.0, 1.0, 1.0, 0.1, 0.01]
        """
        first = int(self.ordinary * num_lanes)
        if lane < first:
            return 1.0
        share = (lane - first) / (num_lanes - first - 1) if self.spread and num_lanes - first > 1 else 1.0
        return min(1.0, (num_segments / self.lifetime) ** share)


def check_endless(max_tokens: int | None, question_apart: bool, unanswerable: float) -> None:
    """Refuse what lanes cannot have.

    Raises:
        ConfigError: if texts are to end, or to be without their facts, or questions to be part of them.
    """
    if max_tokens is not None or not question_apart or unanswerable:
        raise ConfigError(
            f"max_tokens={max_tokens}, question_apart={question_apart}, unanswerable={unanswerable}: carried lanes have texts "
            "without end, their facts in them and their questions apart; leave these out of a stage with carried lanes, or give "
            "it a task of its own, {max_tokens: null, question_apart: true, unanswerable: 0}"
        )


def check_waits(carried: Carried, examples: TaskExamples) -> None:
    """Refuse to wait for what begins a text.

    Raises:
        ConfigError: if lanes are to, and a task's facts stand first.
    """
    for task in examples.tasks if carried.wait else ():
        if task.placement == "first":
            raise ConfigError(
                f"wait: the facts of {task.name!r} begin a text, and nothing can come before; leave wait out"
            )


@dataclass(slots=True)
class _Life:
    """What is left of a lane in a checkpoint."""

    number: int = 0
    tokens: int = 0


class TaskLane:
    """One lane.

    Args:
        examples: The tasks, the noise and the form of the answer.
        seed: The lane's.
        first_tokens: The facts stand in so many tokens, the first ones after its wait.
        max_question: The most tokens that a question and its answer may have.
        step_tokens: Tokens that it waits for in a step.
        chance: How likely it is, in a step, that it does not wait any longer; 1: it never waits.
        apart: Whether it waits before each further fact too.

    Raises:
        ConfigError: if a question is too long.
    """

    def __init__(
        self,
        examples: TaskExamples,
        seed: str,
        first_tokens: int,
        max_question: int,
        *,
        step_tokens: int = 1,
        chance: float = 1.0,
        apart: bool = False,
    ) -> None:
        self._examples, self._seed = examples, seed
        self._first_tokens, self._max_question = first_tokens, max_question
        self._step_tokens, self._chance, self._apart = step_tokens, chance, apart
        self._starts = [0]
        self.life = _Life(-1)
        self.renew()

    @property
    def waits(self) -> bool:
        """Whether the next step is one before all facts have been read."""
        return self.life.tokens < self._starts[-1]

    @property
    def tells(self) -> bool:
        """Whether the next step has facts."""
        return self.life.tokens in self._starts

    @property
    def told(self) -> bool:
        """Whether all facts have been read."""
        return self.life.tokens > self._starts[-1]

    @property
    def begins(self) -> bool:
        """Whether the next step is the first one of a text."""
        return self.life.tokens == 0

    def renew(self) -> None:
        """Begin a new text."""
        self._begin(_Life(self.life.number + 1))

    def _begin(self, life: _Life) -> None:
        self.life = life
        rng = random.Random(f"{self._seed}/{life.number}")
        before = self._step_tokens * self._steps(rng)
        self._text, self._endings, self._starts = self._examples.begin(
            rng, self._first_tokens, partial(self._places, before)
        )
        self._check(self._endings)

    def _check(self, endings: list[Example]) -> None:
        longest = max(len(ending["input_ids"]) for ending in endings)
        if longest > self._max_question:
            raise ConfigError(
                f"a question with its answer has {longest} tokens, more than a segment "
                f"({self._max_question}); take a greater segment_length"
            )

    def _steps(self, rng: random.Random) -> int:
        """Steps to wait for."""
        return int(math.log(1 - rng.random()) / math.log(1 - self._chance)) if self._chance < 1 else 0

    def _places(self, before: int, num_facts: int) -> list[int]:
        """Where the step begins that each fact is told in. A fact that comes after no wait is told with the one before it."""
        starts, told_tokens = [before], max(self._first_tokens, self._step_tokens)
        rng = random.Random(f"{self._seed}/{self.life.number}/apart")
        for _ in range(num_facts - 1):
            steps = self._steps(rng) if self._apart else 0
            starts.append(starts[-1] + (told_tokens + (steps - 1) * self._step_tokens if steps else 0))
        return starts

    def take(self, num_tokens: int) -> Example:
        """The next tokens of the text, and its questions after them."""
        return self._examples.all_asked(self._slice(num_tokens), self._endings)

    def take_early(self, num_tokens: int, rng: random.Random, asked_early: float | None) -> Example:
        """The next tokens of a text that waits, with questions that it does not answer, or one that nothing is learned from.

        Raises:
            ConfigError: if a question is too long.
        """
        if asked_early is None:
            return without_answer(self.take(num_tokens))
        if rng.random() < asked_early:
            endings = self._examples.other_endings(rng)
            self._check(endings)
            return without_answer(self._examples.all_asked(self._slice(num_tokens), endings))
        return unlabelled(without_answer(self._examples.all_asked(self._slice(num_tokens), self._endings[:1])))

    def _slice(self, num_tokens: int) -> list[int]:
        start = self.life.tokens
        ids: list[int] = self._text.slice(start, start + num_tokens).tolist()
        self.life.tokens += num_tokens
        self._text.forget(self.life.tokens)
        return ids

    def restore(self, number: int, tokens: int) -> None:
        """Stand where a lane stood."""
        self._begin(_Life(number))
        while self.life.tokens < tokens:
            self._slice(min(_SKIPPED_TOKENS, tokens - self.life.tokens))


class TaskLanes:
    """All lanes of a process, and what they remember.

    Args:
        model: The model.
        examples: What is learned.
        carried: How lanes are carried.
        num_lanes: How many.
        num_segments: Segments of a step.
        seed: Of everything that is drawn.
        first_lane: The number of the first lane: with several processes each has its own.

    Raises:
        ConfigError: if lanes are to wait for facts that begin a text, or a question is too long.
    """

    def __init__(
        self,
        model: RecurrentMemoryModel,
        examples: TaskExamples,
        carried: Carried,
        *,
        num_lanes: int,
        num_segments: int,
        seed: int | str,
        first_lane: int = 0,
    ) -> None:
        check_waits(carried, examples)
        self._model, self._carried, self._examples = model, carried, examples
        self._length, self._num_segments = model.memory_config.segment_length, num_segments
        self._seed = f"{seed}/lanes/{num_segments}"
        self._numbers = range(first_lane, first_lane + num_lanes)
        self._chances = [carried.chance_to_end(lane, num_lanes, num_segments) for lane in range(num_lanes)]
        self._lanes = [
            TaskLane(
                examples,
                f"{self._seed}/{number}",
                carried.first_segments * self._length,
                self._length,
                step_tokens=num_segments * self._length,
                chance=chance if carried.wait else 1.0,
                apart=carried.apart,
            )
            for number, chance in zip(self._numbers, self._chances, strict=True)
        ]
        self.state = model.initial_state(num_lanes)
        self.nothing_said = torch.zeros(num_lanes, dtype=torch.bool)
        """`[B]` the lanes that neither begin nor tell facts in this step."""
        self.mean_age = 0.0
        self._texts = torch.arange(num_lanes)  # the lane of each row of a batch

    def next(self, step: int) -> tuple[dict[str, Tensor], MemoryState]:
        """The batch of a step, a row for each question of each lane, and the state that it goes on from.

        A lane that tells its facts reads all segments that they stand in at once, so that what is asked for has been said.
        """
        begins = torch.tensor([lane.begins for lane in self._lanes], device=self.state.device)
        self.state = self._model.initial_state(len(self._lanes)).where(begins, self.state.detach())
        examples: list[Example] = []
        self.nothing_said = torch.tensor([not (lane.begins or lane.tells) for lane in self._lanes])
        for number, lane in zip(self._numbers, self._lanes, strict=True):
            segments = max(self._carried.first_segments, self._num_segments) if lane.tells else self._num_segments
            tokens = segments * self._length
            rng = random.Random(f"{self._seed}/{number}/{step}")
            if lane.waits:
                examples.append(lane.take_early(tokens, rng, self._carried.asked_early))
                continue
            if rng.random() < self._examples.partial:
                tokens -= rng.randrange(self._length)
            examples.append(lane.take(max(tokens, self._carried.first_segments * self._length if lane.tells else 1)))
        batch = collate(examples)
        self._texts = batch.get("texts", torch.arange(len(examples)))
        return batch, self.of_rows(self.state)

    def of_rows(self, of_lanes: _OfLanes) -> _OfLanes:
        """What belongs to lanes, for every row of the batch."""
        return of_lanes if len(self._texts) == len(self._lanes) else of_lanes[self._texts]

    def finish(self, step: int, outcome: Outcome) -> None:
        """Keep what the lanes remember after the text, the question not among it, and end those whose time has come."""
        firsts = torch.searchsorted(self._texts, torch.arange(len(self._lanes)))
        after = outcome.memory_state.index(firsts)
        nothing = torch.zeros_like(after.pending_lengths)
        self.state = after.with_pending(after.pending[:, :0], nothing).detach()
        wrong = torch.zeros(len(self._lanes), dtype=torch.bool)
        wrong[self._texts[(outcome.num_wrong > 0).cpu()]] = True
        self.mean_age = sum(lane.life.tokens for lane in self._lanes) / len(self._lanes) / self._length
        for index, (number, lane) in enumerate(zip(self._numbers, self._lanes, strict=True)):
            rng = random.Random(f"{self._seed}/{number}/{step}/end")
            ends = rng.random() < self._chances[index]
            if lane.told and (ends or (self._carried.drop_lost and wrong[index])):
                lane.renew()

    # ------------------------------------------------------------------ checkpoints

    def standing(self) -> dict[str, Any]:
        """How far the lanes are, for JSON."""
        return {"lives": [asdict(lane.life) for lane in self._lanes]}

    def memory_values(self) -> dict[str, Tensor]:
        """What they remember."""
        return {
            **{f"memory.{name}": tensor for name, tensor in self.state.tensors.items()},
            "tokens_read": self.state.tokens_read,
            "segments_folded": self.state.segments_folded,
        }

    def restore(self, standing: dict[str, Any], values: dict[str, Tensor]) -> None:
        """Stand where the lanes stood.

        Raises:
            RecipeError: if the checkpoint is of other lanes.
        """
        try:
            lives = [(int(life["number"]), int(life["tokens"])) for life in standing["lives"]]
            tensors = {name: values[f"memory.{name}"] for name in self.state.tensors}
            counts = values["tokens_read"], values["segments_folded"]
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"the checkpoint has no carried lanes ({error}); resume from another one") from error
        if len(lives) != len(self._lanes):
            raise RecipeError(
                f"the checkpoint has {len(lives)} lanes, the recipe {len(self._lanes)}; take the recipe that it is of"
            )
        for lane, life in zip(self._lanes, lives, strict=True):
            lane.restore(*life)
        rows = torch.ones(len(lives), dtype=torch.bool, device=self.state.device)
        state = self.state.folded({name: tensor.to(self.state.device) for name, tensor in tensors.items()}, rows)
        tokens_read, segments_folded = (count.to(self.state.device) for count in counts)
        self.state = replace(state, tokens_read=tokens_read, segments_folded=segments_folded)
