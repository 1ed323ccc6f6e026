"""`rmt train`: a model by a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .common import Common, Debug, Device, Json, Seed, Threads

PRECISIONS = {"float32": "float32", "bfloat16": "bf16", "float16": "fp16"}


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, such as recipes/small.yaml.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="In place of what the recipe says.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check that the recipe is valid.")] = False,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="float32, bfloat16, float16: of forward passes; auto: the recipe's precision."),
    ] = "auto",
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Train a model by a recipe.

    The model is written to the recipe's `out`, checkpoints and the log to `<out>.run`. After an interruption the same
    command with --resume goes on, to the same weights. Several processes: torchrun --nproc-per-node N -m
    recurrent_memory train RECIPE.

    Example: rmt train recipes/small.yaml noise=my/texts,my/code out=models/small
    """
    common = Common(as_json, device, dtype, threads, seed, debug)
    overrides = [*(settings or []), *([f"seed={seed}"] if seed is not None else [])]
    from ..training.settings import is_experiment, read_values

    of_trainer = is_experiment(read_values(recipe, "a recipe"))
    (_train_experiment if of_trainer else _train_small)(common, recipe, overrides, resume=resume, check=check)


def _train_small(common: Common, path: str, overrides: list[str], *, resume: bool, check: bool) -> None:
    from ..training.recipe import load_recipe

    loaded = load_recipe(path, overrides)
    if common.device not in ("auto", "cpu") or common.dtype not in ("auto", "float32"):
        raise ConfigError(
            f"--device {common.device} --dtype {common.dtype}: {path} makes a model on the CPU in float32, so that it is the "
            "same model everywhere; leave both out"
        )
    if check:
        _show_valid(common, path, len(loaded.stages))
        return
    _set_threads(common)
    from ..training.make import make

    with _bar(len(loaded.stages)) as report:
        last = make(loaded, resume=resume, report=report)
    words = (
        f"{loaded.out}: trained for {last['elapsed_s'] / 60:.0f} minutes on {last['tokens']:,} tokens; "
        f"accuracy {last['accuracy']:.3f}, of facts at least 10 segments old {last['accuracy_old']:.3f}"
    )
    common.show({"out": loaded.out, **last}, words)


def _train_experiment(common: Common, path: str, overrides: list[str], *, resume: bool, check: bool) -> None:
    import torch

    from ..training.experiment import load_experiment, run_experiment

    if common.dtype != "auto":
        if common.dtype not in PRECISIONS:
            raise ConfigError(f"--dtype {common.dtype}: is not one of auto, {', '.join(PRECISIONS)}")
        overrides = [*overrides, f"precision={PRECISIONS[common.dtype]}"]
    loaded = load_experiment(path, overrides)
    if check:
        _show_valid(common, path, len(loaded.plan().planned()))
        return
    _set_threads(common)
    changes = _device_settings(common.device)
    if os.environ.get("RANK", "0") == "0":
        common.warn_of(
            loaded.precision, "cpu" if "use_cpu" in changes or not torch.accelerator.is_available() else "other"
        )
    with _stage_bar() as report:
        _, results = run_experiment(loaded, resume=resume, report=report, disable_tqdm=True, **changes)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    rows = [asdict(result) for result in results]
    lines = [
        f"{row['num_segments']} segments: {row['num_steps']} steps, held-out accuracy {_measured(row['accuracy'])}, "
        f"loss {_measured(row['loss'])}"
        for row in rows
    ]
    common.show({"out": loaded.out, "stages": rows}, "\n".join([f"{loaded.out}: trained", *lines]))


def _measured(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _show_valid(common: Common, path: str, num_stages: int) -> None:
    common.show({"recipe": path, "valid": True, "stages": num_stages}, f"{path}: valid, {num_stages} stages")


def _set_threads(common: Common) -> None:
    import torch

    if common.threads is not None:
        torch.set_num_threads(common.threads)


def _device_settings(name: str) -> dict[str, Any]:
    """The Trainer's settings for a device: it takes the GPU of its process where there is one."""
    from ..models import choose_device

    if name == "auto":
        return {}
    device = choose_device(name)
    if device.index is not None:
        raise ConfigError(
            f"--device {name}: a training takes the GPU of its process; show it one: CUDA_VISIBLE_DEVICES={device.index}"
        )
    return {"use_cpu": True} if device.type == "cpu" else {}


_Report = Callable[[dict[str, Any]], None]


@contextmanager
def _stage_bar() -> Generator[_Report]:
    """A progress bar over the steps of a stage; lines where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda row: typer.echo(_stage_line(row), err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    progress = Progress(
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
    tasks: dict[int, Any] = {}
    known: dict[int, dict[str, Any]] = {}

    def update(row: dict[str, Any]) -> None:
        stage = row["stage"]
        if stage not in tasks:
            tasks[stage], known[stage] = progress.add_task("", total=row["max_steps"]), {}
        known[stage] |= row
        progress.update(tasks[stage], completed=row["step"], description=_stage_line(known[stage]))

    with progress:
        yield update


def _stage_line(row: dict[str, Any]) -> str:
    parts = [
        f"stage {row['stage'] + 1}/{row['num_stages']}",
        f"up to {row['num_segments']} segments",
        f"step {row['step']}",
    ]
    names = {
        "loss": "loss",
        "accuracy": "accuracy",
        "eval_loss": "held-out loss",
        "eval_accuracy": "held-out accuracy",
    }
    parts += [f"{shown} {row[name]:.3f}" for name, shown in names.items() if name in row]
    of_tasks = ", ".join(f"{name} {value:.3f}" for name, value in row.get("eval_accuracy_of_tasks", {}).items())
    return "  ".join(parts) + (f" ({of_tasks})" if of_tasks else "")


@contextmanager
def _bar(num_stages: int) -> Generator[_Report]:
    """A progress bar over the stages, with what the last row of the log says; lines where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda row: typer.echo(_line(row, num_stages), err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
    )
    task = progress.add_task("", total=num_stages)

    def update(row: dict[str, Any]) -> None:
        progress.update(task, completed=row["stage"], description=_line(row, num_stages))

    with progress:
        yield update


def _line(row: dict[str, Any], num_stages: int) -> str:
    return (
        f"stage {row['stage'] + 1}/{num_stages}  step {row['step']}  loss {row['loss']:.3f}  "
        f"accuracy {row['accuracy']:.3f}  old facts {row['accuracy_old']:.3f}  {row['tokens']:,} tokens"
    )
