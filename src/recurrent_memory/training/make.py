"""Make a model by a recipe: noise, vocabulary, model, loop, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ..config import MemoryConfig
from ..errors import RecipeError
from ..files import atomic_write
from ..model import RecurrentMemoryModel
from .loop import Progress, Trainer, write_log
from .noise import load_noise
from .recipe import Recipe
from .tokenizer import train_tokenizer


def make(
    recipe: Recipe, *, resume: bool = False, report: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Train what a recipe describes, into its `out` folder.

    Args:
        recipe: The recipe.
        resume: Whether to go on from the last checkpoint in `<out>.run`.
        report: Called with every row of the log.

    Returns:
        The last row of the log.

    Raises:
        RecipeError: if there is nothing to resume, or the output is there already and `resume` is not set.
    """
    out, run = Path(recipe.out), Path(f"{recipe.out}.run")
    checkpoint = run / "checkpoint"
    if resume and not (checkpoint / "progress.json").is_file():
        raise RecipeError(f"{run}: there is no checkpoint to resume from; train without --resume")
    if not resume and (checkpoint / "progress.json").is_file():
        raise RecipeError(f"{run}: a training is there already; go on with --resume, or give another out=…")
    run.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    noise = load_noise(recipe.noise, recipe.noise_chars, recipe.seed)
    torch.manual_seed(recipe.seed)
    if resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        model = RecurrentMemoryModel.from_pretrained(checkpoint)
    else:
        tokenizer = train_tokenizer(noise, recipe.tokenizer.vocab_size, recipe.tokenizer.training_chars, recipe.seed)
        model = _new_model(recipe, tokenizer)
    write = write_log(run / "log.jsonl")

    def log(row: dict[str, Any]) -> None:
        write(row)
        if report is not None:
            report(row)

    trainer = Trainer(recipe, model, tokenizer, noise, log)
    if resume:
        _restore(trainer, checkpoint)

    def save(trainer: Trainer) -> None:
        _save(trainer, tokenizer, checkpoint)

    progress = trainer.run(save)
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return asdict(progress)


def _new_model(recipe: Recipe, tokenizer: Any) -> RecurrentMemoryModel:
    values = dict(recipe.backbone)
    try:
        model_type = values.pop("model_type")
        config = AutoConfig.for_model(
            model_type,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **values,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise RecipeError(
            f"backbone: is not a configuration of a transformers model ({error}); name its model_type"
        ) from error
    backbone = AutoModelForCausalLM.from_config(config)
    return RecurrentMemoryModel.from_backbone(backbone, MemoryConfig.from_dict(recipe.memory))


def _save(trainer: Trainer, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extra = {f"module.{k}": v for k, v in trainer.modules.state_dict().items() if not k.startswith("model.")}
    for index, parameter in enumerate(trainer.modules.parameters()):
        for name, value in trainer.optimizer.state.get(parameter, {}).items():
            extra[f"optimizer.{index}.{name}"] = value.detach()
    save_file({k: v.contiguous().clone() for k, v in extra.items()}, folder / "training.safetensors")
    with atomic_write(folder / "progress.json") as temporary:
        temporary.write_text(json.dumps(asdict(trainer.progress)), encoding="utf-8")


def _restore(trainer: Trainer, folder: Path) -> None:
    tensors = load_file(folder / "training.safetensors")
    modules = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    trainer.modules.load_state_dict(modules, strict=False)
    for index, parameter in enumerate(trainer.modules.parameters()):
        prefix = f"optimizer.{index}."
        values = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if values:
            trainer.optimizer.state[parameter] = values
    trainer.progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
