"""What is learned from carried lanes: questions on the side after every segment, probes, and to keep what is known.

Gradients go back through the segments of one step; the memory comes into it cut from the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from .carried_lanes import CarriedLanes
from .carried_progress import Progress, average
from .keeping import MARGIN, change_of
from .lanes import Lane
from .probes import BindingProbe, MemoryProbe, first_layer
from .recipe import Stage

OLD_SEGMENTS = 10


class Lessons:
    """The losses of a model that reads carried lanes, and what is counted on the way.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Raises:
        RecipeError: if a place is more than one token, or questions are not equally long.
    """

    def __init__(self, model: RecurrentMemoryModel, tokenizer: Any) -> None:
        self.model, self.progress = model, Progress()
        self.ids = {p: tokenizer(question(p), add_special_tokens=False)["input_ids"] for p in PEOPLE}
        answers = [tokenizer(f" {place}", add_special_tokens=False)["input_ids"] for place in PLACES]
        if len({len(ids) for ids in self.ids.values()}) > 1 or any(len(ids) != 1 for ids in answers):
            raise RecipeError("the vocabulary is too small: every place must be one token, every question equally long")
        self.answers = torch.tensor([ids[0] for ids in answers])
        self.end_of_text = tokenizer.eos_token_id
        self.draw_probes()
        first_layer(model.backbone, model.backbone.config.num_hidden_layers).register_forward_hook(self._see_layer)
        self._carried: Tensor | None = None
        carry = getattr(model.memory, "carry", None)
        if isinstance(carry, SignCarry):
            carry.register_forward_hook(self._see_carried)

    def draw_probes(self) -> None:
        """Begin with new probes."""
        width, config = self.model.view.embedding_width, self.model.memory_config
        self.memory_probe, self.binding_probe = MemoryProbe(config.num_memory_tokens, width), BindingProbe(width)
        self.probes = nn.ModuleDict({"memory": self.memory_probe, "binding": self.binding_probe})

    def _see_layer(self, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._seen = output[0] if isinstance(output, tuple) else output

    def _see_carried(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self._carried = inputs[0]

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the model and the probes."""
        return [*self.model.parameters(), *self.probes.parameters()]

    def read(self, stage: Stage, carried: CarriedLanes) -> Tensor | None:
        """Read a step's segments of every lane; the loss, or None where there was nothing to ask."""
        progress, lanes, state = self.progress, carried.lanes, carried.state
        total, weight, kept = torch.zeros(()), 0.0, torch.zeros(())
        right: list[float] = []
        old: list[float] = []
        text_start = self.model.memory_config.num_memory_tokens
        for _ in range(stage.num_segments):
            segment = carried.take()
            written = self.model.memory_config.num_written
            before = state.memory[:, :written].detach()
            # The binding probe looks at the first layer, which may be the last one.
            state = self.model.step(segment, state, return_hidden=bool(stage.binding))[1]
            quiet = torch.tensor([lane.quiet and bool(lane.known) for lane in lanes])
            if stage.keep and bool(quiet.any()):
                kept = kept + self._kept_loss(stage, state.memory[quiet, :written], before[quiet], quiet)
            told = torch.tensor([not lane.quiet and bool(lane.known) for lane in lanes])
            if stage.sparse and bool(told.any()):
                kept = kept + self._sparse_loss(stage, before[told], told)
            progress.tokens += int(segment.lengths.sum())
            if stage.binding:
                total = total + stage.binding * self.binding_probe.loss(self._seen, lanes, text_start)
            if stage.probe:
                loss, accuracy = self.memory_probe.loss(state.memory, lanes)
                total = total + 0.5 * stage.probe * loss
                progress.probe_accuracy = average(progress.probe_accuracy, accuracy)
            asked = self._draw_questions(stage, carried)
            if asked:
                loss, number = self._answer_loss(stage, state, lanes, asked, right, old)
                total, weight = total + loss, weight + number
        carried.state = state.detach()
        if right:
            progress.accuracy = average(progress.accuracy, sum(right) / len(right), progress.step)
        if old:
            progress.accuracy_old = average(progress.accuracy_old, sum(old) / len(old), progress.step)
        return total / weight + kept if weight else None

    def count_loss(self, loss: float) -> None:
        """Take a step's loss into the average."""
        self.progress.loss = average(self.progress.loss, loss, self.progress.step)

    @torch.no_grad()
    def find_lost(self, carried: CarriedLanes) -> None:
        """Ask for all facts, drop those answered wrongly, and name the lanes in which there is none left."""
        lanes, progress = carried.lanes, self.progress
        asked = [(row, person) for row, lane in enumerate(lanes) for person in lane.known]
        carried.lost = set()
        if not asked:
            return
        ids = torch.tensor([self.ids[person] for _, person in asked])
        memory = carried.state.index(torch.tensor([row for row, _ in asked])).tensors
        said = self.model.view.head(self._look_at_end(ids, memory, 1)[:, 0]).argmax(-1)
        right = said == self.answers[[PLACES.index(lanes[row].known[person]) for row, person in asked]]
        old = [lanes[row].age[person] > OLD_SEGMENTS for row, person in asked]
        progress.lost = average(progress.lost, 1 - float(right.float().mean()))
        if any(old):
            progress.lost_old = average(progress.lost_old, 1 - float(right[torch.tensor(old)].float().mean()))
        progress.mean_age = average(
            progress.mean_age, sum(lanes[row].age[person] for row, person in asked) / len(asked)
        )
        for (row, person), hit in zip(asked, right.tolist(), strict=True):
            if not hit:
                lanes[row].forget(person)
        carried.lost = {row for row, lane in enumerate(lanes) if lane.lost and not lane.known}

    def _look_at_end(self, ids: Tensor, memory: dict[str, Tensor], count: int) -> Tensor:
        """The last hidden states, `[B, count, D]`, at the last tokens of questions; the last layer runs there alone."""
        view, end = self.model.view, slice(-count, None)
        return self.model.memory.look(view, Segment.full(ids), memory, lambda rows, _: view.encode_at(rows, None, end))[
            0
        ]

    def _kept_loss(self, stage: Stage, memory: Tensor, before: Tensor, quiet: Tensor) -> Tensor:
        """That a memory stays as it was before a segment with no fact in it."""
        moved = (memory.detach() - before).square().mean()
        self.progress.moved = average(self.progress.moved, float(moved))
        hidden = self._carried[quiet] if self._carried is not None else None
        return stage.keep * change_of(hidden, before, memory) / stage.num_segments

    def _sparse_loss(self, stage: Stage, before: Tensor, told: Tensor) -> Tensor:
        """That a segment with a fact turns over bits of few memory tokens: the mean of the tokens' norms, a group lasso.

        What is known of others stands in the rest. Yuan, Lin: Model Selection and Estimation in Regression with Grouped
        Variables, J. R. Stat. Soc. B 68 (2006).
        """
        if self._carried is None:
            raise RecipeError("sparse is for memories of signs, which this model's is not; leave it out of the recipe")
        turned = (MARGIN - self._carried[told] * before.sign()).relu()
        return stage.sparse * (turned.mean(-1) + 1e-4).sqrt().mean() / stage.num_segments

    def _draw_questions(self, stage: Stage, carried: CarriedLanes) -> list[tuple[int, str]]:
        asked: list[tuple[int, str]] = []
        rng = carried.rng
        for row, lane in enumerate(carried.lanes):
            known = sorted(lane.known)
            asked += [(row, p) for p in rng.sample(known, min(stage.questions, len(known)))]
            unknown = [p for p in PEOPLE if p not in lane.known and p not in lane.lost]
            if stage.unknown > 0 and unknown and rng.random() < 0.3:
                asked.append((row, rng.choice(unknown)))
        return asked

    def _answer_loss(
        self,
        stage: Stage,
        state: MemoryState,
        lanes: Sequence[Lane],
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
        hidden = self._look_at_end(ids, state.index(rows).tensors, 2)
        logits = self.model.view.head(hidden.flatten(0, 1)).unflatten(0, (-1, 2)).float()
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
            self.progress.unknown_confidence = average(self.progress.unknown_confidence, sure)
        return ((of_answer + 0.1 * of_end) * weights).sum(), float(weights.sum())


def hold_bits(model: RecurrentMemoryModel, hold: float) -> None:
    """Set `MemoryConfig.hold` of a model that carries signs, from here on.

    Raises:
        RecipeError: if it carries something else.
    """
    carry = getattr(model.memory, "carry", None)
    if not isinstance(carry, SignCarry):
        raise RecipeError("hold is for memories of signs, which this model's is not; leave it out of the recipe")
    config = replace(model.memory_config, hold=hold)
    model.config.memory, model.memory_config, model.memory.config = config.to_dict(), config, config
    carry.hold = hold
