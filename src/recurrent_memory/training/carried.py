"""A stage of carried lanes as a run of Hugging Face's `Trainer`.

Every lane keeps its memory from step to step, cut from the graph; gradients go back through the `num_segments` of the
step. A stage begins with the weights, the optimizer and the random numbers of the last checkpoint of the one before,
whether that was written a moment ago or by a process that was killed: so both are the same training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SaveStrategy

from ..errors import ConfigError
from .carried_lanes import CarriedLanes
from .carried_lessons import Lessons, hold_bits
from .carried_progress import Progress
from .checkpoint import load_values, load_weights
from .random_state import RandomState
from .recipe import Recipe
from .resumable import STATE_FILE, ResumableTrainer

LOG_EVERY = 50


class CarriedTrainer(ResumableTrainer):
    """Trains a model on one stage of a recipe; `make.py` puts several of these in a row.

    Args:
        lessons: The model, and what it is to learn.
        recipe: The recipe.
        index: Which of its stages.
        folder: Of the stage's checkpoints and curves.
        tokenizer: Saved beside the model.
        noise: Documents of each source.
        begins_with: The last checkpoint of the stage before; None: with the model as it is.
        report: Called with a row of the log every 50 steps.

    Raises:
        ConfigError: if several processes were started.
        RecipeError: if `begins_with` is damaged, or of another model.
    """

    def __init__(
        self,
        lessons: Lessons,
        recipe: Recipe,
        index: int,
        *,
        folder: Path,
        tokenizer: Any,
        noise: Sequence[Sequence[str]],
        begins_with: Path | None = None,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        # The Trainer seeds the generators anew, and draws from them on its way to the first step.
        random = RandomState.now(torch.device("cpu"))
        self.lessons, self.stage, self.recipe, self.report = lessons, recipe.stages[index], recipe, report
        self._tokenizer, self._begins_with = tokenizer, begins_with
        stage = self.stage
        if (hold := recipe.hold_at(index)) is not None:
            hold_bits(lessons.model, hold)
        if stage.anew:
            if stage.seed is not None:
                torch.manual_seed(stage.seed)
            lessons.draw_probes()
            random = RandomState.now(torch.device("cpu"))
        optimizer = torch.optim.AdamW(
            lessons.parameters(), lr=1.0, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self._restore_random: Callable[[], Any] | None = random.restore
        if begins_with is not None:
            load_weights(lessons.model, begins_with)
            lessons.progress = Progress.load(begins_with)
        if begins_with is not None and not stage.anew:
            values = load_values(begins_with / STATE_FILE)
            lessons.probes.load_state_dict(values["probes"])
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": values["optimizer"]["state"], "param_groups": groups})
            self._restore_random = partial(super()._load_rng_state, str(begins_with))
        if stage.seed is not None:
            self._restore_random = partial(torch.manual_seed, stage.seed)
        lessons.progress.begin(index)
        lessons.progress.accuracy = lessons.progress.accuracy_old = 0.0
        seed = f"{recipe.seed}/{index if stage.lanes_seed is None else stage.lanes_seed}/0"
        self.lanes = CarriedLanes(stage, lessons.model, tokenizer.backend_tokenizer, noise, seed)
        super().__init__(
            lessons.model,
            _arguments(recipe, index, folder),
            train_dataset=cast(Any, range(stage.max_steps)),  # the lanes are the data; a step is counted, no more
            data_collator=cast(Any, _collate),
            optimizers=(optimizer, LambdaLR(optimizer, stage.learning_rate_at)),
            callbacks=[_EndOfStep(self._end_step)],
        )
        self.remove_callback(PrinterCallback)
        if self.args.world_size > 1:
            raise ConfigError("lanes are carried in one process; start it without torchrun")
        self._last_s = self._saved_s = time.monotonic()

    # ------------------------------------------------------------------ a step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Read the next segments of every lane; the loss and its gradients."""
        del inputs, num_items_in_batch
        if self._restore_random is not None:
            self._restore_random()
            self._restore_random = None
        model.train()
        cast(Any, self.optimizer).zero_grad()  # the Trainer's own leaves the probes out
        progress = self.lessons.progress
        self.lanes.renew(progress.step)
        loss = self.lessons.read(self.stage, self.lanes)
        if loss is None:
            return torch.zeros(())
        if not bool(torch.isfinite(loss)):
            self._stop("the loss", loss.item())
        loss.backward()
        self.lessons.count_loss(float(loss.detach()))
        return loss.detach()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        del model
        return self.accelerator.clip_grad_norm_(self.lessons.parameters(), self.args.max_grad_norm)

    def _end_step(self, control: TrainerControl) -> None:
        if self.stage.drop_lost:
            self.lessons.find_lost(self.lanes)
        now, progress = time.monotonic(), self.lessons.progress
        progress.count(now - self._last_s)
        self._last_s = now
        if progress.has_ended(self.stage):
            control.should_training_stop = control.should_save = True
        elif now - self._saved_s > self.recipe.checkpoint_every_s:
            control.should_save = True
            self._saved_s = now

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report the progress, in place of the mean loss since the last row."""
        if "loss" in logs:
            row = self.lessons.progress.row()
            self.report(row)
            logs.update({name: value for name, value in row.items() if name != "step"})
        super().log(logs, start_time)

    def _where(self) -> str:
        return f"in stage {self.lessons.progress.stage + 1}, step {self.lessons.progress.step + 1}"

    def _last_checkpoint(self) -> str | None:
        return super()._last_checkpoint() or (str(self._begins_with) if self._begins_with is not None else None)

    # ------------------------------------------------------------------ files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self._tokenizer.save_pretrained(output_dir)

    def _save_training(self, folder: Path) -> None:
        super()._save_training(folder)
        self.lanes.save(folder)
        self.lessons.progress.save(folder)

    def _training_values(self) -> dict[str, Any]:
        return {
            **super()._training_values(),
            "probes": dict(self.lessons.probes.state_dict()),
            "memory": self.lanes.memory_values(),
        }

    def _load_training(self, folder: Path, values: dict[str, Any]) -> None:
        super()._load_training(folder, values)
        self.lessons.probes.load_state_dict(values["probes"])
        self.lessons.progress = Progress.load(folder)
        self.lanes.load(folder, values["memory"])
        for group in cast(Any, self.optimizer).param_groups:  # lower than it was, where the recipe has been changed
            group["lr"] = self.stage.learning_rate_at(self.lessons.progress.step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        self._restore_random = None


class _EndOfStep(TrainerCallback):
    """Calls a function after every step, before it is logged and saved."""

    def __init__(self, function: Callable[[TrainerControl], None]) -> None:
        self.function = function

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.function(control)


def _arguments(recipe: Recipe, index: int, folder: Path) -> TrainingArguments:
    stage = recipe.stages[index]
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.max_steps,
        per_device_train_batch_size=1,
        learning_rate=stage.learning_rate,
        max_grad_norm=recipe.clip_norm,
        logging_steps=LOG_EVERY,
        save_strategy=SaveStrategy.NO,  # by the clock: see `_end_step`
        save_total_limit=2,
        seed=recipe.seed % 2**32,
        use_cpu=True,
        disable_tqdm=True,
        report_to=["tensorboard"] if is_tensorboard_available() else [],
    )


def _collate(steps: list[int]) -> dict[str, Any]:
    return {"step": steps}
