"""`rmt train`: a model by a recipe."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .common import Common, Debug, Json, Seed, Threads


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, such as recipes/small.yaml.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="In place of what the recipe says.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check that the recipe is valid.")] = False,
    as_json: Json = False,
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Train a model by a recipe.

    The model is written to the recipe's `out`, checkpoints and the log to `<out>.run`.

    Example: rmt train recipes/small.yaml noise=my/texts,my/code out=models/small
    """
    common = Common(as_json, "cpu", "float32", threads, seed, debug)
    from ..training.recipe import load_recipe

    loaded = load_recipe(recipe, [*(settings or []), *([f"seed={seed}"] if seed is not None else [])])
    if check:
        common.show(
            {"recipe": recipe, "valid": True, "stages": len(loaded.stages)},
            f"{recipe}: valid, {len(loaded.stages)} stages",
        )
        return
    import torch

    from ..training.make import make

    if common.threads is not None:
        torch.set_num_threads(common.threads)
    last = make(loaded, resume=resume, report=_bar(len(loaded.stages)))
    words = (
        f"{loaded.out}: trained for {last['elapsed_s'] / 60:.0f} minutes on {last['tokens']:,} tokens; "
        f"accuracy {last['accuracy']:.3f}, of facts at least 10 segments old {last['accuracy_old']:.3f}"
    )
    common.show({"out": loaded.out, **last}, words)


def _bar(num_stages: int) -> Any:
    """A progress bar over the stages, with what the last row of the log says; lines where nobody watches."""
    if not sys.stderr.isatty():
        return lambda row: typer.echo(_line(row, num_stages), err=True)  # pyright: ignore[reportUnknownLambdaType]
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
    )
    progress.start()
    task = progress.add_task("", total=num_stages)

    def update(row: dict[str, Any]) -> None:
        progress.update(task, completed=row["stage"], description=_line(row, num_stages))

    return update


def _line(row: dict[str, Any], num_stages: int) -> str:
    return (
        f"stage {row['stage'] + 1}/{num_stages}  step {row['step']}  loss {row['loss']:.3f}  "
        f"accuracy {row['accuracy']:.3f}  old facts {row['accuracy_old']:.3f}  {row['tokens']:,} tokens"
    )
