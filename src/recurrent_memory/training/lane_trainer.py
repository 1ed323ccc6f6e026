"""A stage on carried lanes: `RecurrentMemoryTrainer`, its examples taken from texts that go on from step to step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import TrainingArguments

from ..errors import ConfigError, RecipeError
from ..model import RecurrentMemoryModel
from .bptt import Outcome
from .keeping import Keep, check_keeps
from .task_examples import TaskExamples
from .task_lanes import Carried, TaskLanes
from .trainer import RecurrentMemoryTrainer

LANES_FILE = "lanes.json"


def check_lanes(model: RecurrentMemoryModel, args: TrainingArguments, carried: Carried) -> None:
    """Refuse what lanes cannot be trained with.

    Raises:
        ConfigError: if several processes were started, a batch has several parts, or the memory is not one that can be kept.
    """
    if args.world_size > 1 or args.gradient_accumulation_steps > 1:
        raise ConfigError(
            "lanes are carried in one process, a batch in one part; start it without torchrun, with batch.parts: 1"
        )
    if carried.keep:
        check_keeps(model)


class LaneTrainer(RecurrentMemoryTrainer):
    """Trains on carried lanes, one for each row of the batch; held-out accuracy is that of drawn examples.

    Args:
        model: The model.
        args: The Trainer's settings.
        examples: The tasks.
        num_segments: Segments of a step, which gradients go back through.
        carried: How lanes are carried.
        first_step: As of `RecurrentMemoryTrainer`.
        **settings: Of `RecurrentMemoryTrainer`.

    Raises:
        ConfigError: if several processes were started, a batch has several parts, or the memory is not one that can be kept.
    """

    def __init__(
        self,
        model: RecurrentMemoryModel,
        args: TrainingArguments,
        *,
        examples: TaskExamples,
        num_segments: int,
        carried: Carried,
        first_step: int = 0,
        **settings: Any,
    ) -> None:
        check_lanes(model, args, carried)
        super().__init__(model, args, examples=examples, num_segments=num_segments, first_step=first_step, **settings)
        self.lanes = TaskLanes(  # where the Trainer has put the model
            model,
            examples,
            carried,
            num_lanes=args.train_batch_size,
            num_segments=num_segments,
            seed=f"{args.seed}/{first_step}" if first_step else args.seed,
        )
        self._weight, self._kept = carried.keep, list[float]()
        self.train_dataset = cast(Any, _Counted(args.max_steps * args.train_batch_size))
        self.data_collator = cast(Any, _collate)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Read the next segments of every lane, then its question; the loss and its gradients."""
        del inputs, num_items_in_batch
        batch, state = self.lanes.next(self.state.global_step)
        keep = None
        if self._weight:
            keep = Keep(self.lanes.of_rows(self.lanes.nothing_said).to(self.args.device), self._weight)
        return super().training_step(model, {**batch, "memory_state": state, "keep": keep}, None)

    def _look_at(self, outcome: Outcome) -> None:
        super()._look_at(outcome)
        if self._weight:
            self._kept.append(float(outcome.kept))
        self.lanes.finish(self.state.global_step, outcome)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean age of the lanes, in segments, and the loss that memories stay as they are."""
        if "loss" in logs:
            logs["mean_age"] = round(self.lanes.mean_age, 1)
            if self._kept:
                logs["kept"] = sum(self._kept) / len(self._kept)
                self._kept = []
        super().log(logs, start_time)

    def _save_training(self, folder: Path) -> None:
        super()._save_training(folder)
        (folder / LANES_FILE).write_text(json.dumps(self.lanes.standing()), encoding="utf-8")

    def _training_values(self) -> dict[str, Any]:
        return {**super()._training_values(), "lanes": self.lanes.memory_values()}

    def _load_training(self, folder: Path, values: dict[str, Any]) -> None:
        super()._load_training(folder, values)
        path = folder / LANES_FILE
        try:
            standing = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{path}: cannot be read ({error}); resume from an older checkpoint") from error
        self.lanes.restore(standing, values.get("lanes", {}))


class _Counted:
    """So many items, which are their numbers: what the Trainer counts its steps by."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def _collate(items: list[int]) -> dict[str, Any]:
    return {"items": items}
