"""A recurrent memory trained by Hugging Face's `Trainer`: its loop, flags, logs and callbacks, our gradients and files.

What is ours: examples are drawn, not shuffled (`examples.py`); a step goes over segments (`bptt.py`); accuracy is
measured without ever holding the logits of a text; a checkpoint is safetensors and JSON, appears whole or not at all,
and a training that goes on from it is the uninterrupted one, bit for bit on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from ..errors import ConfigError, RecipeError
from ..model import RecurrentMemoryModel
from .bptt import Backpropagation, backpropagate, measure
from .checkpoint import load_values, load_weights, random_states, restore_random_states, save_values, whole_folder
from .curves import CurvesCallback
from .examples import DrawnBatches, SegmentedExamples, collate, held_out

STATE_FILE = "training.safetensors"
# Settings of the Trainer that would be passed over in silence, or would make a training that goes on another one.
_UNSUPPORTED = {
    "label_smoothing_factor": 0.0,
    "torch_compile": False,
    "auto_find_batch_size": False,
    "ignore_data_skip": False,
}


class RecurrentMemoryTrainer(Trainer):
    """Trains a model at one number of segments; `curriculum.py` puts several of these in a row.

    Works with gradient accumulation, bf16 and fp16, PEFT adapters, and several processes started by `torchrun`: G
    examples a step are the same G, and give the same gradient, however they are shared out.

    Args:
        model: The model, with `requires_grad` set (`choose_trained`).
        args: The Trainer's settings. `max_steps` must be given; `seed` is that of the examples too.
        examples: The task.
        num_segments: The largest number of segments of an example.
        random_num_segments: Whether every step draws a number from 1 to `num_segments`; else all have `num_segments`.
        backpropagation: Which gradient is taken, and how.
        num_eval_examples: How many held-out examples, of `num_segments` segments, an evaluation reads.
        target_accuracy: The held-out accuracy at which training stops, 0…1; None: at `max_steps` only.
        processing_class: The tokenizer, saved beside the model.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ConfigError: if a setting cannot work.
    """

    model: RecurrentMemoryModel
    args: TrainingArguments

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
        target_accuracy: float | None = None,
        processing_class: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        _check(args, num_segments, num_eval_examples, target_accuracy)
        self.examples, self.num_segments, self.num_eval_examples = examples, num_segments, num_eval_examples
        self.backpropagation = backpropagation or Backpropagation()
        data = DrawnBatches(
            examples,
            seed=args.seed if args.data_seed is None else args.data_seed,
            num_steps=args.max_steps,
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            num_segments=num_segments,
            random_num_segments=random_num_segments,
        )
        ours = [CurvesCallback(), *([] if target_accuracy is None else [_StopAt(target_accuracy)])]
        super().__init__(
            model=model,
            args=args,
            train_dataset=data,
            eval_dataset=cast(Any, data),  # asked for by eval_strategy; `evaluate` draws its own
            data_collator=cast(Any, collate),
            processing_class=processing_class,
            callbacks=[*ours, *callbacks],
        )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ConfigError(
                "DeepSpeed and FSDP shard the model and are not supported; start several processes with torchrun"
            )
        self._num_right = self._num_labels = 0  # since the last row of the log

    # ------------------------------------------------------------------ a step

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else cast(Any, self.train_dataset))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss and gradients of a part of the batch; of all processes together after the last part."""
        model.train()
        inputs = cast(dict[str, Any], self._prepare_inputs(inputs))
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
        if self._anywhere(~torch.isfinite(loss)):
            self._stop("the loss", float(loss))
        self._num_right += int(outcome.num_right)
        self._num_labels += outcome.num_labels
        if self.args.world_size > 1 and self.accelerator.sync_gradients:
            _average_gradients(self.model)
        return loss

    def _factor(self, num_items_in_batch: Tensor | int | None) -> float:
        """What makes the mean over processes of the sum over parts the mean over the labels of the batch."""
        if num_items_in_batch is None:
            return 1.0 / self.current_gradient_accumulation_steps
        return float(self.args.world_size) if self.args.average_tokens_across_devices else 1.0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # An fp16 scaler meets infinite gradients now and then: it skips the step and lowers its scale.
        if getattr(self.accelerator, "scaler", None) is None and norm is not None:
            value = float(norm)
            if value != value or value in (float("inf"), -float("inf")):
                self._stop("the gradient's norm", value)
        return norm

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

    def _stop(self, what: str, value: float) -> NoReturn:
        last = get_last_checkpoint(self.args.output_dir)
        advice = f"the last good checkpoint is {last}" if last is not None else "there is no checkpoint yet"
        raise RecipeError(
            f"{what} became {value} at step {self.state.global_step + 1}; {advice}: lower the learning rate and train again from there"
        )

    # ------------------------------------------------------------------ what is reported

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the accuracy over the labels since the last row."""
        if "loss" in logs:
            right, count = self._over_processes([self._num_right, self._num_labels])
            logs["accuracy"] = right / max(count, 1.0)
            logs["num_segments"] = self.num_segments
            self._num_right = self._num_labels = 0
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, eval_dataset: SegmentedExamples | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and accuracy, the share of labels that are the likeliest class, over held-out examples of `num_segments`.

        Args:
            eval_dataset: Another task to draw them from.
            ignore_keys: Not used.
            metric_key_prefix: What the names of the metrics begin with.
        """
        del ignore_keys
        examples = self.examples if eval_dataset is None else eval_dataset
        self.model.eval()
        rank, step = self.args.process_index, self.args.world_size
        mine = [
            held_out(examples, self.args.seed, self.num_segments, index)
            for index in range(rank, self.num_eval_examples, step)
        ]
        size = self.args.per_device_eval_batch_size
        sums = [0.0, 0.0, 0.0]
        for start in range(0, len(mine), size):
            inputs = cast(dict[str, Any], self._prepare_inputs(cast(Any, collate(mine[start : start + size]))))
            got = measure(self.model, **inputs, num_items_in_batch=1, autocast=self._autocast)
            sums = [a + b for a, b in zip(sums, (float(got.loss), int(got.num_right), got.num_labels), strict=True)]
        loss, right, count = self._over_processes(sums)
        metrics = {
            f"{metric_key_prefix}_loss": loss / max(count, 1.0),
            f"{metric_key_prefix}_accuracy": right / max(count, 1.0),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ------------------------------------------------------------------ files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            folder = output_dir if output_dir is not None else self.args.output_dir
            self.model.save_pretrained(str(folder), state_dict=state_dict)
            if self.processing_class is not None:
                cast(Any, self.processing_class).save_pretrained(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        del model, trial
        self.store_flos()
        root, state = Path(str(self.args.output_dir)), self.state
        final = root / f"checkpoint-{state.global_step}"
        best = root / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and (best == final or best.is_dir()):
            state.best_model_checkpoint = str(best)
        main = self.args.should_save
        with whole_folder(final, is_main=main, wait=self.accelerator.wait_for_everyone) as folder:
            self._save(str(folder))
            if not self.args.save_only_model:
                save_values(random_states(self.args.device), folder / f"random-{self.args.process_index}.safetensors")
                if main:
                    save_values(self._training_values(), folder / STATE_FILE)
            if main:
                for item in [*self.callback_handler.callbacks, self.control]:
                    if isinstance(item, ExportableState):
                        cast(dict[str, Any], state.stateful_callbacks)[type(item).__name__] = item.state()
                state.save_to_json(str(folder / "trainer_state.json"))
        if main:
            rotate_checkpoints(
                output_dir=str(root),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=state.best_model_checkpoint,
            )

    def _training_values(self) -> dict[str, Any]:
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "optimizer": cast(Any, self.optimizer).state_dict(),
            "schedule": cast(Any, self.lr_scheduler).state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        load_weights(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        values = load_values(Path(checkpoint) / STATE_FILE)
        cast(Any, self.optimizer).load_state_dict(values["optimizer"])
        cast(Any, self.lr_scheduler).load_state_dict(values["schedule"])
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and values["scaler"] is not None:
            scaler.load_state_dict(values["scaler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Comes with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            path = Path(checkpoint) / f"random-{self.args.process_index}.safetensors"
            if not path.is_file():
                raise RecipeError(
                    f"{path}: is missing; a training goes on with as many processes as it was begun with "
                    f"(now {self.args.world_size})"
                )
            restore_random_states(load_values(path), self.args.device)

    def _load_best_model(self) -> None:
        load_weights(self.model, str(self.state.best_model_checkpoint))


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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # no part in this process's texts, perhaps in another's
            parameter.grad = torch.zeros_like(parameter)
    handles = [dist.all_reduce(cast(Tensor, parameter.grad), async_op=True) for parameter in trained]
    for parameter, handle in zip(trained, handles, strict=True):
        cast(Any, handle).wait()
        cast(Tensor, parameter.grad).div_(dist.get_world_size())


def _check(args: TrainingArguments, num_segments: int, num_eval_examples: int, target_accuracy: float | None) -> None:
    for name, neutral in _UNSUPPORTED.items():
        if getattr(args, name) != neutral:
            raise ConfigError(f"{name}={getattr(args, name)!r} is not supported here; leave it at {neutral!r}")
    if args.max_steps < 1:
        raise ConfigError(
            f"max_steps={args.max_steps} must be at least 1: examples are drawn without end, epochs are not"
        )
    if num_segments < 1:
        raise ConfigError(f"num_segments={num_segments} must be at least 1")
    if num_eval_examples < 1:
        raise ConfigError(f"num_eval_examples={num_eval_examples} must be at least 1")
    if target_accuracy is not None and not 0.0 < target_accuracy <= 1.0:
        raise ConfigError(f"target_accuracy={target_accuracy} must be above 0 and at most 1")
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process are not supported; start one process for each: "
            f"torchrun --nproc-per-node {args.n_gpu} …"
        )
