"""Make a model by a recipe: noise, vocabulary, model, and a run of the Trainer for every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from ..config import MemoryConfig
from ..errors import RecipeError
from ..locking import alone_in
from ..model import RecurrentMemoryModel
from ..models import load_model
from .carried import CarriedTrainer
from .carried_lessons import Lessons, hold_bits
from .carried_progress import Progress, write_log
from .checkpoint import load_weights
from .noise import load_noise
from .recipe import Recipe
from .tokenizer import train_tokenizer


def make(
    recipe: Recipe, *, resume: bool = False, report: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Train what a recipe describes, into its `out` folder.

    The same recipe, noise and number of threads give the same model, bit for bit, however often the training is stopped
    and resumed. `<out>.run` gets the log and a folder for each stage, with its checkpoints and its curves.

    Args:
        recipe: The recipe.
        resume: Whether to go on from the last checkpoint in `<out>.run`, or anew where it was stopped before the first.
        report: Called with every row of the log.

    Returns:
        The last row of the log.

    Raises:
        RecipeError: if there is nothing to resume, the output is there already and `resume` is not set, the loss stops
            being a number, or a checkpoint is damaged.
        OutputError: if another process trains into `<out>.run`.
    """
    run = Path(f"{recipe.out}.run")
    folders = [run / f"stage-{index + 1}" for index in range(len(recipe.stages))]
    begun = [index for index, folder in enumerate(folders) if _last_checkpoint(folder) is not None]
    if resume and not run.is_dir():
        raise RecipeError(f"{run}: there is nothing to resume; train without --resume")
    if not resume and begun:
        raise RecipeError(f"{run}: a training is there already; go on with --resume, or give another out=…")
    with alone_in(run):
        return _make(recipe, folders, begun, report)


def _make(
    recipe: Recipe, folders: Sequence[Path], begun: Sequence[int], report: Callable[[dict[str, Any]], None] | None
) -> dict[str, Any]:
    out, run = Path(recipe.out), Path(f"{recipe.out}.run")
    transformers_logging.disable_progress_bar()
    noise = load_noise(recipe.noise, recipe.noise_chars, recipe.seed)
    torch.manual_seed(recipe.seed)
    at = begun[-1] if begun else 0
    last = _last_checkpoint(folders[at])
    if recipe.model is not None:
        model, tokenizer = load_model(recipe.model, "cpu", "float32")
        torch.manual_seed(recipe.seed)
    else:
        if last is None:
            size, chars = recipe.tokenizer.vocab_size, recipe.tokenizer.training_chars
            tokenizer = train_tokenizer(noise, size, chars, recipe.seed)
        else:
            tokenizer = _load_tokenizer(last)
        model = _new_model(recipe, tokenizer)
    lessons = Lessons(model, tokenizer)
    write = write_log(run / "log.jsonl", Progress.load(last).steps if last is not None else 0)

    def log(row: dict[str, Any]) -> None:
        write(row)
        if report is not None:
            report(row)

    resumed = last
    if last is not None and Progress.load(last).has_ended(recipe.stages[at]):
        at, resumed = at + 1, None
    for index in range(at, len(folders)):
        trainer = CarriedTrainer(
            lessons,
            recipe,
            index,
            folder=folders[index],
            tokenizer=tokenizer,
            noise=noise,
            begins_with=last if resumed is None else None,
            report=log,
        )
        trainer.train(resume_from_checkpoint=_checked(resumed) if resumed is not None else None)
        last, resumed = _last_checkpoint(folders[index]), None
    if last is None:
        raise RecipeError(f"{run}: the last stage ended without a checkpoint; go on with --resume")
    load_weights(lessons.model, last)
    if recipe.final_hold is not None:
        hold_bits(lessons.model, recipe.final_hold)
    lessons.model.eval()
    lessons.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    progress = Progress.load(last)
    progress.begin(len(folders))
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


def _last_checkpoint(folder: Path) -> Path | None:
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return Path(last) if last is not None else None


def _load_tokenizer(folder: Path) -> Any:
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the Rust library raises bare ones
        raise RecipeError(
            f"{folder}: its vocabulary cannot be read ({error}); remove the folder to resume from an older checkpoint"
        ) from error


def _checked(folder: Path) -> str:
    """The folder's name, if the Trainer can read its own file there."""
    path = folder / "trainer_state.json"
    try:
        TrainerState.load_from_json(str(path))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"{path}: cannot be read ({error}); remove {folder} to resume from an older checkpoint"
        ) from error
    return str(folder)
