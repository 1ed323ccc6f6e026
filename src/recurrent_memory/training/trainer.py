"""A recurrent memory trained by Hugging Face's `Trainer` on drawn examples: its loop, flags, logs and callbacks.

What is ours: examples are drawn, not shuffled (`examples.py`); a step goes over segments (`bptt.py`); accuracy is
measured without ever holding the logits of a text; checkpoints are exact (`resumable.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import ConfigError
from ..model import RecurrentMemoryModel
from .accuracy import Tally, num_right
from .bptt import Backpropagation, Outcome, backpropagate, measure
from .examples import DrawnBatches, SegmentedExamples, collate, collate_places, hardest, held_out, unlabelled
from .parameter_groups import split_off
from .resumable import ResumableTrainer


class RecurrentMemoryTrainer(ResumableTrainer):
    """Trains a model at one number of segments; `curriculum.py` puts several of these in a row.

    Works with gradient accumulation, bf16 and fp16, PEFT adapters, and several processes started by `torchrun`, with their
    layers split or not (`sharding.shard_layers`): G examples a step are the same G, and give the same gradient, however they
    are shared out.

    Args:
        model: The model, with `requires_grad` set (`choose_trained`).
        args: The Trainer's settings. `max_steps` must be given; `seed` is that of the examples too.
        examples: The task.
        num_segments: The largest number of segments of an example.
        random_num_segments: Whether every step draws a number from 1 to `num_segments`; else all have `num_segments`.
        backpropagation: Which gradient is taken, and how.
        num_eval_examples: How many held-out examples an evaluation reads.
        eval_segments: Segments of each of them; None: `num_segments`.
        target_accuracy: The held-out accuracy at which training stops, 0…1; None: at `max_steps` only.
        eval_examples: What held-out examples are drawn from; None: from `examples`.
        memory_learning_rate: Of the memory's parameters, at its highest; None: that of the others.
        candidates: How many examples are drawn for each place of a batch; the one with the largest loss is trained on (`hardest`).
        first_step: The number of the first step, in what is drawn.
        processing_class: The tokenizer, saved beside the model.
        callbacks: Further callbacks of the Trainer.
        backbone: As of `ResumableTrainer`.

    Raises:
        ConfigError: if a setting cannot work.
    """

    def __init__(
        self,
        model: RecurrentMemoryModel,
        args: TrainingArguments,
        *,
        examples: SegmentedExamples,
        num_segments: int,
        random_num_segments: bool = True,
        backpropagation: Backpropagation | None = None,
        num_eval_examples: int = 64,
        eval_segments: int | None = None,
        target_accuracy: float | None = None,
        eval_examples: SegmentedExamples | None = None,
        memory_learning_rate: float | None = None,
        candidates: int = 1,
        first_step: int = 0,
        processing_class: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
        backbone: str | None = None,
    ) -> None:
        _check(num_segments, num_eval_examples, eval_segments, target_accuracy, candidates)
        args.remove_unused_columns = False  # what an example brings is for `backpropagate`, not for `forward`
        self.examples, self.num_segments, self.num_eval_examples = examples, num_segments, num_eval_examples
        self.eval_segments = num_segments if eval_segments is None else eval_segments
        self.eval_examples = examples if eval_examples is None else eval_examples
        self.memory_learning_rate, self.candidates = memory_learning_rate, candidates
        self.backpropagation = backpropagation or Backpropagation()
        data = DrawnBatches(
            examples,
            seed=args.seed if args.data_seed is None else args.data_seed,
            num_steps=args.max_steps,
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            num_segments=num_segments,
            random_num_segments=random_num_segments,
            candidates=candidates,
            first_step=first_step,
        )
        super().__init__(
            model,
            args,
            train_dataset=data,
            eval_dataset=cast(Any, data),  # asked for by eval_strategy; `evaluate` draws its own
            data_collator=cast(Any, collate_places),
            processing_class=processing_class,
            backbone=backbone,
            callbacks=[_LogWhenSaved(), *([] if target_accuracy is None else [_StopAt(target_accuracy)]), *callbacks],
        )
        self._num_right = self._num_counted = 0  # since the last row of the log

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, with the memory's own learning rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.memory_learning_rate is not None:
            split_off(optimizer, self.model.memory.parameters(), self.memory_learning_rate)
        return optimizer

    # ------------------------------------------------------------------ a step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The parts of the next batch, and the number of its labels; of candidates the hardest, by the weights of now."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.candidates == 1:
            return batches, num_items
        batches = [self._hardest(batch) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    @torch.no_grad()
    def _hardest(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if "texts" in batch:
            raise ConfigError(
                f"candidates={self.candidates}: examples with several questions cannot be chosen from; leave questions out"
            )
        self.model.eval()
        size = len(batch["input_ids"]) // self.candidates
        losses: list[Tensor] = []
        for start in range(0, size * self.candidates, size):  # as many at once as are trained on at once
            part = {name: values[start : start + size] for name, values in batch.items()}
            inputs = cast(dict[str, Any], self._prepare_inputs(cast(Any, part)))
            inputs.pop("unanswerable", None)
            losses.append(measure(self.model, **inputs, num_items_in_batch=1, autocast=self._autocast).row_losses)
        rows = hardest(torch.cat(losses), self.candidates)
        return {name: values[rows.to(values.device)] for name, values in batch.items()}

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss and gradients of a part of the batch; of all processes together after the last part."""
        model.train()
        inputs = cast(dict[str, Any], self._prepare_inputs(inputs))
        unanswerable = inputs.pop("unanswerable", None)
        factor = self._factor(num_items_in_batch)
        scaler = getattr(self.accelerator, "scaler", None)
        one = torch.ones((), device=self.args.device)
        outcome = backpropagate(
            self.model,
            **inputs,
            method=self.backpropagation,
            num_items_in_batch=num_items_in_batch,
            loss_scale=factor * (scaler.scale(one) if scaler is not None else 1.0),
            autocast=self._autocast,
        )
        loss = outcome.loss * factor
        if self._anywhere(~torch.isfinite(loss + outcome.kept)):
            self._stop("the loss", float(loss))
        right, count = num_right(outcome, inputs, unanswerable)
        self._num_right += right
        self._num_counted += count
        if self.args.world_size > 1 and self.accelerator.sync_gradients:
            _average_gradients(self.model)
        self._look_at(outcome)
        return loss

    def _look_at(self, outcome: Outcome) -> None:
        """Called with what came of every part of a batch."""

    def _factor(self, num_items_in_batch: Tensor | int | None) -> float:
        """What makes the mean over processes of the sum over parts the mean over the labels of the batch."""
        if num_items_in_batch is None:
            return 1.0 / self.current_gradient_accumulation_steps
        return float(self.args.world_size) if self.args.average_tokens_across_devices else 1.0

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def _anywhere(self, flag: Tensor) -> bool:
        found = flag.to(torch.int32)
        if self.args.world_size > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def _over_processes(self, values: list[float]) -> list[float]:
        if self.args.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return cast(Tensor, self.accelerator.reduce(total, "sum")).tolist()

    # ------------------------------------------------------------------ what is kept

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of two that are equally accurate, as all are in the end where a task can be learned, the one with the lower loss."""
        if super()._determine_best_metric(metrics, trial):
            return True
        if self.args.metric_for_best_model != "accuracy" or metrics["eval_accuracy"] != self.state.best_metric:
            return False
        before = next(
            row["eval_loss"]
            for row in self.state.log_history
            if row["step"] == self.state.best_global_step and "eval_loss" in row
        )
        if metrics["eval_loss"] >= before:
            return False
        self.state.best_global_step = self.state.global_step
        return True

    # ------------------------------------------------------------------ what is reported

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the accuracy since the last row."""
        if "loss" in logs:
            right, count = self._over_processes([self._num_right, self._num_counted])
            logs["accuracy"] = right / max(count, 1.0)
            logs["num_segments"] = self.num_segments
            self._num_right = self._num_counted = 0
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, eval_dataset: SegmentedExamples | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and accuracy over held-out examples, and the accuracy of each of several tasks; see `num_right`.

        Args:
            eval_dataset: Another task to draw them from.
            ignore_keys: Not used.
            metric_key_prefix: What the names of the metrics begin with.
        """
        del ignore_keys
        examples = self.eval_examples if eval_dataset is None else eval_dataset
        self.model.eval()
        rank, step = self.args.process_index, self.args.world_size
        mine = [
            held_out(examples, self.args.seed, self.eval_segments, index)
            for index in range(rank, self.num_eval_examples, step)
        ]
        if self.is_split:  # layers are gathered by all processes, so each reads as many, some for nothing
            first = held_out(examples, self.args.seed, self.eval_segments, 0)
            mine += [unlabelled(first)] * (-(-self.num_eval_examples // step) - len(mine))
        size = self.args.per_device_eval_batch_size
        tally = Tally(getattr(examples, "task_names", ()))
        for start in range(0, len(mine), size):
            batch = mine[start : start + size]
            inputs = cast(dict[str, Any], self._prepare_inputs(cast(Any, collate(batch))))
            got = measure(self.model, **inputs, num_items_in_batch=1, autocast=self._autocast)
            tally.add(got, inputs, batch)
        tally.sums = self._over_processes(tally.sums)
        metrics = tally.metrics(metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _LogWhenSaved(TrainerCallback):
    """A checkpoint has no sums of what is not logged yet, so that a resumed training would log less: nothing is left at one."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True


class _StopAt(TrainerCallback):
    """Ends a training at a held-out accuracy, with a checkpoint."""

    def __init__(self, accuracy: float) -> None:
        self.accuracy = accuracy

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics: dict[str, float] = kwargs.get("metrics") or {}
        if metrics.get("eval_accuracy", 0.0) >= self.accuracy:
            control.should_training_stop = control.should_save = True


def _average_gradients(model: nn.Module) -> None:
    """The mean over processes, as `DistributedDataParallel` would take it.

    A step sends gradients back several times, which its reducer does not expect, so it is left out of it.
    """
    trained = [
        p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)
    ]  # FSDP has averaged those
    for parameter in trained:
        if parameter.grad is None:  # no part in this process's texts, perhaps in another's
            parameter.grad = torch.zeros_like(parameter)
    handles = [dist.all_reduce(cast(Tensor, parameter.grad), async_op=True) for parameter in trained]
    for parameter, handle in zip(trained, handles, strict=True):
        cast(Any, handle).wait()
        cast(Tensor, parameter.grad).div_(dist.get_world_size())


def _check(
    num_segments: int,
    num_eval_examples: int,
    eval_segments: int | None,
    target_accuracy: float | None,
    candidates: int,
) -> None:
    given = {
        "num_segments": num_segments,
        "num_eval_examples": num_eval_examples,
        "eval_segments": eval_segments,
        "candidates": candidates,
    }
    for name, value in given.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    if target_accuracy is not None and not 0.0 < target_accuracy <= 1.0:
        raise ConfigError(f"target_accuracy={target_accuracy} must be above 0 and at most 1")
