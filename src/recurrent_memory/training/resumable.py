"""Hugging Face's `Trainer` with our files: a training that is stopped at any moment goes on as if it had not been.

A checkpoint is safetensors and JSON, appears whole or not at all, and a training that goes on from it is the
uninterrupted one, bit for bit on the CPU. What a step is, and what it learns from, is said by those that build on this:
drawn examples (`trainer.py`) and carried lanes (`carried.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from ..errors import ConfigError, RecipeError
from ..lean_saving import LeftOut, left_out
from ..model import RecurrentMemoryModel
from .checkpoint import load_values, load_weights, random_states, restore_random_states, save_values, whole_folder
from .curves import CurvesCallback
from .sharding import clip, is_sharded, load_whole_optimizer, split_groups, whole, whole_weights

STATE_FILE = "training.safetensors"
# Settings of the Trainer that would be passed over in silence, or would make a training that goes on another one.
_UNSUPPORTED = {
    "label_smoothing_factor": 0.0,
    "torch_compile": False,
    "auto_find_batch_size": False,
    "ignore_data_skip": False,
}


class ResumableTrainer(Trainer):
    """A Trainer that reads its data in order, draws its curves, stops at what is no number, and goes on exactly.

    Args:
        model: The model, with `requires_grad` set.
        args: The Trainer's settings. `max_steps` must be given.
        callbacks: Further callbacks of the Trainer.
        backbone: The hub id or the folder that the backbone came from: checkpoints are without what is frozen, which is as it is
            there, and take a few megabytes. None: they are whole.
        **settings: What else the Trainer takes.

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
        callbacks: Sequence[TrainerCallback] = (),
        backbone: str | None = None,
        **settings: Any,
    ) -> None:
        _check(args)
        self._backbone = backbone
        self._left_out: LeftOut | None = None
        has_cache = "use_cache" in vars(model.config)
        super().__init__(model=model, args=args, callbacks=[CurvesCallback(), *callbacks], **settings)
        if not has_cache:  # the Trainer has set it, and it would be saved with the model
            vars(model.config).pop("use_cache", None)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ConfigError(
                "DeepSpeed and the Trainer's own FSDP split what is used outside layers and are not supported; "
                "call shard_layers(model) before (in a recipe fsdp: true), and leave them out"
            )
        self.is_split = is_sharded(model)
        if self.is_split:
            if args.fp16:
                raise ConfigError("fsdp does not go with fp16, whose scale is one process's; take bf16")
            accelerator = cast(Any, self.accelerator)
            accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)  # not into DDP

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, with what is split over processes in groups of its own."""
        optimizer = super().create_optimizer(model)
        if self.is_split:
            split_groups(optimizer)
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return clip(self.model, self.args.max_grad_norm) if self.is_split else super()._clip_grad_norm(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else cast(Any, self.train_dataset))

    # ------------------------------------------------------------------ what is no number

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # An fp16 scaler meets infinite gradients now and then: it skips the step and lowers its scale.
        if getattr(self.accelerator, "scaler", None) is None and norm is not None:
            value = float(norm)
            if value != value or value in (float("inf"), -float("inf")):
                self._stop("the gradient's norm", value)
        return norm

    def _stop(self, what: str, value: float) -> NoReturn:
        last = self._last_checkpoint()
        advice = f"the last good checkpoint is {last}" if last is not None else "there is no checkpoint yet"
        raise RecipeError(
            f"{what} became {value} {self._where()}; {advice}: lower the learning rate and train again from there"
        )

    def _where(self) -> str:
        return f"at step {self.state.global_step + 1}"

    def _last_checkpoint(self) -> str | None:
        return get_last_checkpoint(str(self.args.output_dir))

    # ------------------------------------------------------------------ files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.is_split:
            state_dict = whole_weights(self.model)
        if self.args.should_save:
            folder = output_dir if output_dir is not None else self.args.output_dir
            self.model.save_pretrained(str(folder), backbone=self._without(state_dict), state_dict=state_dict)
            if self.processing_class is not None:
                cast(Any, self.processing_class).save_pretrained(folder)

    def _without(self, weights: dict[str, Tensor] | None) -> LeftOut | None:
        """What a checkpoint is without. Looked for once: what is frozen stays as it is."""
        if self._left_out is None and self._backbone is not None:
            frozen = {
                name for name, weight in self.model.named_parameters(remove_duplicate=False) if not weight.requires_grad
            }
            weights = self.model.state_dict() if weights is None else weights
            self._left_out = left_out(self.model, weights, self._backbone, frozen)
        return self._left_out

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
                if main or self.is_split:
                    self._save_training(folder)
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

    def _save_training(self, folder: Path) -> None:
        values = self._training_values()
        if self.args.should_save:
            save_values(values, folder / STATE_FILE)

    def _training_values(self) -> dict[str, Any]:
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "optimizer": whole(cast(Any, self.optimizer).state_dict()),
            "schedule": cast(Any, self.lr_scheduler).state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        load_weights(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._load_training(Path(checkpoint), load_values(Path(checkpoint) / STATE_FILE))

    def _load_training(self, folder: Path, values: dict[str, Any]) -> None:
        """Take back what `_save_training` has written; `values` are those of `_training_values`."""
        del folder
        if self.is_split:
            load_whole_optimizer(cast(Any, self.optimizer), values["optimizer"])
        else:
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


def _check(args: TrainingArguments) -> None:
    for name, neutral in _UNSUPPORTED.items():
        if getattr(args, name) != neutral:
            raise ConfigError(f"{name}={getattr(args, name)!r} is not supported here; leave it at {neutral!r}")
    if args.max_steps < 1:
        raise ConfigError(
            f"max_steps={args.max_steps} must be at least 1: examples are drawn without end, epochs are not"
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process are not supported; start one process for each: "
            f"torchrun --nproc-per-node {args.n_gpu} …"
        )
