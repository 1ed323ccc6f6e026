"""The loop: carried lanes, truncated backpropagation, a question on the side after every segment.

Every lane keeps its memory from step to step, cut from the graph; gradients go back through the `num_segments` of the
step. Lanes begin anew at random, so that a stage with a long lifetime shows memories of every age. One stage begins
where the one before ended.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..errors import RecipeError
from ..memories.carry import SignCarry
from ..model import RecurrentMemoryModel
from ..segments import Segment
from ..state import MemoryState
from ..tasks.whereabouts import PEOPLE, PLACES, question
from .lanes import Lane
from .probes import BindingProbe, MemoryProbe, first_layer
from .recipe import Recipe, Stage

WARMUP_STEPS = 30
AVERAGE = 0.97
MIN_STEPS = 100
OLD_SEGMENTS = 10
LOG_EVERY = 50
KEEP_MARGIN = 0.5


@dataclass(slots=True)
class Progress:
    """What has been reached: a row of the log."""

    stage: int = 0
    step: int = 0
    steps: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    stage_elapsed_s: float = 0.0
    loss: float = 0.0
    accuracy: float = 0.0
    accuracy_old: float = 0.0
    probe_accuracy: float = 0.0
    unknown_confidence: float = 0.0
    moved: float = 0.0
    lost: float = 0.0
    lost_old: float = 0.0
    mean_age: float = 0.0


class Trainer:
    """Trains a model by a recipe.

    Args:
        recipe: The recipe.
        model: The model.
        tokenizer: Its tokenizer.
        noise: Documents of each source.
        log: Called with a row of the log every 50 steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: RecurrentMemoryModel,
        tokenizer: Any,
        noise: list[list[str]],
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        self.recipe, self.model, self.noise, self.log = recipe, model, noise, log
        self.encode = tokenizer.backend_tokenizer
        self.ids = {p: tokenizer(question(p), add_special_tokens=False)["input_ids"] for p in PEOPLE}
        answers = [tokenizer(f" {place}", add_special_tokens=False)["input_ids"] for place in PLACES]
        if len({len(ids) for ids in self.ids.values()}) > 1 or any(len(ids) != 1 for ids in answers):
            raise RecipeError("the vocabulary is too small: every place must be one token, every question equally long")
        self.answers = torch.tensor([ids[0] for ids in answers])
        self.end_of_text = tokenizer.eos_token_id
        width, config = model.view.embedding_width, model.memory_config
        self.memory_probe = MemoryProbe(config.num_memory_tokens, width)
        self.binding_probe = BindingProbe(first_layer(model.backbone, model.backbone.config.num_hidden_layers), width)
        self.modules = nn.ModuleDict({"model": model, "memory_probe": self.memory_probe, "binding": self.binding_probe})
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(),
            lr=recipe.stages[0].learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
        self.progress = Progress()
        self._carried: Tensor | None = None
        carry = getattr(model.memory, "carry", None)
        if isinstance(carry, SignCarry):
            carry.register_forward_hook(self._see_carried)

    def _see_carried(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self._carried = inputs[0]

    def run(self, save: Callable[[Trainer], None]) -> Progress:
        """All stages from where `progress` stands. `save` is called now and then, and at the end of every stage."""
        self.model.train()
        while self.progress.stage < len(self.recipe.stages):
            self._run_stage(self.recipe.stages[self.progress.stage], save)
            self.progress.stage += 1
            self.progress.step = 0
            self.progress.stage_elapsed_s = 0.0
            save(self)
        return self.progress

    def _run_stage(self, stage: Stage, save: Callable[[Trainer], None]) -> None:
        # The seed names the stage and the step it (re)starts at: a resumed stage draws other lanes than before.
        rng = random.Random(f"{self.recipe.seed}/{self.progress.stage}/{self.progress.step}")
        lanes = [self._lane(stage, rng) for _ in range(stage.lanes)]
        state = self.model.initial_state(stage.lanes)
        lost: set[int] = set()
        last = saved = time.monotonic()
        self.progress.accuracy = self.progress.accuracy_old = 0.0
        counted = 0
        while self.progress.step < stage.max_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(stage)
            fresh = [
                row
                for row in range(stage.lanes)
                if row in lost or (counted and rng.random() < stage.num_segments / stage.lifetime)
            ]
            for row in fresh:
                lanes[row] = self._lane(stage, rng)
            if fresh:
                chosen = torch.zeros(stage.lanes, dtype=torch.bool)
                chosen[fresh] = True
                state = self.model.initial_state(stage.lanes).where(chosen, state)
            state = self._step(stage, lanes, state, rng, counted).detach()
            if stage.drop_lost:
                lost = self._lost(lanes, state)
            counted += 1
            now = time.monotonic()
            self.progress.step += 1
            self.progress.steps += 1
            self.progress.elapsed_s += now - last
            self.progress.stage_elapsed_s += now - last
            last = now
            if self.progress.step % LOG_EVERY == 0:
                self.log({name: _rounded(getattr(self.progress, name)) for name in Progress.__slots__})
            if now - saved > self.recipe.checkpoint_every_s:
                save(self)
                saved = now
            if stage.max_minutes is not None and self.progress.stage_elapsed_s > 60 * stage.max_minutes:
                break
            if stage.target is not None and counted >= MIN_STEPS and self.progress.accuracy >= stage.target:
                break

    def _learning_rate(self, stage: Stage) -> float:
        progress = self.progress
        warm = min(1.0, (progress.step + 1) / WARMUP_STEPS)
        if stage.final_learning_rate is None:
            return stage.learning_rate * warm
        done = progress.step / stage.max_steps
        if stage.max_minutes is not None:
            done = max(done, progress.stage_elapsed_s / (60 * stage.max_minutes))
        return (stage.learning_rate + (stage.final_learning_rate - stage.learning_rate) * min(1.0, done)) * warm

    def _lane(self, stage: Stage, rng: random.Random) -> Lane:
        low, high = stage.facts
        facts = math.exp(rng.uniform(math.log(low), math.log(high)))
        return Lane(
            self.encode,
            self.noise,
            rng.getrandbits(48),
            facts,
            rng.choice(stage.distractors),
            stage.segment_length,
            stage.first_facts if rng.random() < 0.8 else 0.0,
        )

    @torch.no_grad()
    def _lost(self, lanes: list[Lane], state: MemoryState) -> set[int]:
        """Ask for all facts, drop those answered wrongly; the lanes in which there is none left."""
        asked = [(row, person) for row, lane in enumerate(lanes) for person in lane.known]
        if not asked:
            return set()
        ids = torch.tensor([self.ids[person] for _, person in asked])
        memory = state.index(torch.tensor([row for row, _ in asked])).tensors
        hidden, seen = self.model.memory.look(self.model.view, Segment.full(ids), memory)
        said = self.model.view.head(seen.text_of(hidden)[:, -1:])[:, 0].argmax(-1)
        right = said == self.answers[[PLACES.index(lanes[row].known[person]) for row, person in asked]]
        old = [lanes[row].age[person] > OLD_SEGMENTS for row, person in asked]
        self.progress.lost = _average(self.progress.lost, 1 - float(right.float().mean()))
        if any(old):
            self.progress.lost_old = _average(
                self.progress.lost_old, 1 - float(right[torch.tensor(old)].float().mean())
            )
        self.progress.mean_age = _average(
            self.progress.mean_age, sum(lanes[row].age[person] for row, person in asked) / len(asked)
        )
        for (row, person), hit in zip(asked, right.tolist(), strict=True):
            if not hit:
                lanes[row].forget(person)
        return {row for row, lane in enumerate(lanes) if lane.lost and not lane.known}

    def _step(
        self, stage: Stage, lanes: list[Lane], state: MemoryState, rng: random.Random, counted: int
    ) -> MemoryState:
        total, weight, kept = torch.zeros(()), 0.0, torch.zeros(())
        right: list[float] = []
        old: list[float] = []
        text_start = self.model.memory_config.num_memory_tokens
        for _ in range(stage.num_segments):
            taken = [lane.take() for lane in lanes]
            lengths = torch.tensor([len(ids) for ids in taken])
            width = int(lengths.max())
            segment = Segment(torch.tensor([ids + [0] * (width - len(ids)) for ids in taken]), lengths)
            before = state.memory.detach()
            state = self.model.step(segment, state)[1]
            quiet = torch.tensor([lane.quiet and bool(lane.known) for lane in lanes])
            if stage.keep and bool(quiet.any()):
                moved = (state.memory[quiet] - before[quiet]).pow(2).mean()
                change = moved
                if self._carried is not None:  # signs: that every number stays on its side, by a margin
                    change = (KEEP_MARGIN - self._carried[quiet] * before[quiet].sign()).relu().mean()
                kept = kept + stage.keep * change / stage.num_segments
                self.progress.moved = _average(self.progress.moved, float(moved.detach()))
            self.progress.tokens += int(lengths.sum())
            if stage.binding:
                total = total + stage.binding * self.binding_probe.loss(lanes, text_start)
            if stage.probe:
                loss, accuracy = self.memory_probe.loss(state.memory, lanes)
                total = total + 0.5 * stage.probe * loss
                self.progress.probe_accuracy = _average(self.progress.probe_accuracy, accuracy)
            asked = self._draw_questions(lanes, rng, ask_unknown=stage.unknown > 0)
            if asked:
                loss, number = self._answer_loss(stage, state, lanes, asked, right, old)
                total, weight = total + loss, weight + number
        if weight:
            loss = total / weight + kept
            if not bool(torch.isfinite(loss)):
                raise RecipeError(
                    f"the loss became {loss.item()} in stage {self.progress.stage}, step {self.progress.step}; "
                    "the last checkpoint is good: lower the learning rate and train again"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.progress.loss = _average(self.progress.loss, float(loss.detach()), counted)
        if right:
            self.progress.accuracy = _average(self.progress.accuracy, sum(right) / len(right), counted)
        if old:
            self.progress.accuracy_old = _average(self.progress.accuracy_old, sum(old) / len(old), counted)
        return state

    def _draw_questions(self, lanes: list[Lane], rng: random.Random, *, ask_unknown: bool) -> list[tuple[int, str]]:
        asked: list[tuple[int, str]] = []
        for row, lane in enumerate(lanes):
            known = sorted(lane.known)
            asked += [(row, p) for p in rng.sample(known, min(self.recipe.questions, len(known)))]
            unknown = [p for p in PEOPLE if p not in lane.known and p not in lane.lost]
            if ask_unknown and unknown and rng.random() < 0.3:
                asked.append((row, rng.choice(unknown)))
        return asked

    def _answer_loss(
        self,
        stage: Stage,
        state: MemoryState,
        lanes: list[Lane],
        asked: list[tuple[int, str]],
        right: list[float],
        old: list[float],
    ) -> tuple[Tensor, float]:
        """The question in a fresh segment; its answer, then the end of text. Of the unknown, every place alike."""
        rows = torch.tensor([row for row, _ in asked])
        target = torch.tensor([PLACES.index(lanes[row].known[p]) if p in lanes[row].known else -1 for row, p in asked])
        known = target >= 0
        given = torch.where(known, target, torch.randint(len(PLACES), target.shape))
        ids = torch.cat([torch.tensor([self.ids[p] for _, p in asked]), self.answers[given][:, None]], 1)
        hidden, seen = self.model.memory.look(self.model.view, Segment.full(ids), state.index(rows).tensors)
        logits = self.model.view.head(seen.text_of(hidden)[:, -2:].flatten(0, 1)).unflatten(0, (-1, 2)).float()
        scores = log_softmax(logits[:, 0], -1)[:, self.answers]
        of_answer = torch.where(known, -scores.gather(1, given[:, None])[:, 0], -scores.mean(1))
        of_end = -log_softmax(logits[:, 1], -1)[:, self.end_of_text]
        weights = torch.where(known, 1.0, stage.unknown)
        hits = (logits[:, 0].argmax(-1) == self.answers[given]).tolist()
        for (row, person), hit, is_known in zip(asked, hits, known.tolist(), strict=True):
            if is_known:
                right.append(float(hit))
                if lanes[row].age[person] >= OLD_SEGMENTS:
                    old.append(float(hit))
        if not bool(known.all()):
            sure = float(scores.detach()[~known].max(1).values.exp().mean())
            self.progress.unknown_confidence = _average(self.progress.unknown_confidence, sure)
        return ((of_answer + 0.1 * of_end) * weights).sum(), float(weights.sum())


def _average(before: float, now: float, counted: int | None = None) -> float:
    keep = AVERAGE if counted is None else min(AVERAGE, counted / (counted + 1))
    return keep * before + (1 - keep) * now


def _rounded(value: float) -> float:
    return round(value, 4) if isinstance(value, float) else value


def write_log(path: Path) -> Callable[[dict[str, Any]], None]:
    """A function that appends rows to a file of JSON lines."""

    def log(row: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    return log
