"""`rmt study`: a table of experiments, trained and evaluated by one command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .common import Common, Debug, Device, Dtype, Json, Seed, Threads


def study(
    path: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, such as studies/lm-segments.yaml.")],
    given: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]…", help="What the study needs, such as texts.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FOLDER", help="Where everything goes.")] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            metavar="NAME",
            help="Only this row, and a table of it, * for anything in its name; more than once for several.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Trainings, and evaluations, at a time.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in FOLDER.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only show the commands that would be run.")] = False,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Train and evaluate every row of a table, with every seed, and make the table.

    With --seed every row is trained once, with that seed. FOLDER gets the models, the evaluations, a log and a record of
    every process, and the table (table.md, table.csv, results.json, plot.png; sizes.png where memories differ in size, losses.png
    of language models; trainings.csv and trainings.png, the loss by step), which is there as soon as all rows have been run with
    the first seed. After an interruption the same command with --resume goes on, if need be with other seeds or rows.

    Example: rmt study studies/lm-history.yaml train=my/books valid=my/others test=my/test --out results/history --jobs 2
    """
    common = Common(as_json, device, dtype, threads, seed, debug)
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: must be at least 1")
    if out is None:
        raise ConfigError("--out is missing; say where the table goes: --out FOLDER")
    from pathlib import Path

    from ..studies.definition import load_study
    from ..studies.plan import plan

    described = load_study(path, given or [], row or [])
    if seed is not None:
        described = described.model_copy(update={"seeds": (seed,)})
    each = threads if threads is not None else max(1, (os.cpu_count() or 1) // jobs)
    shared = ["--threads", str(each)]
    for option, value in (("--device", device), ("--dtype", dtype)):
        shared += [] if value == "auto" else [option, value]
    if check:
        units = plan(described, Path(out), shared)
        commands = [["rmt", *command] for unit in units for command in (unit.training, unit.evaluation) if command]
        lines = [shlex.join(command) for command in commands]
        common.show({"study": path, "valid": True, "commands": lines}, "\n".join(lines))
        return
    from ..studies.report import MARKDOWN, write_study
    from ..studies.run import run_study
    from ..studies.table import tabulate

    rows = [part for name in row or [] for part in ("--row", name)]
    command = shlex.join(["rmt", "study", path, *(given or []), *rows, "--out", out, "--jobs", str(jobs)])
    shown: dict[str, Any] = {}
    text = ""
    with (
        _bar() as tell,
        closing(run_study(described, out, jobs=jobs, common=shared, resume=resume, tell=tell)) as finished,
    ):
        for so_far, units in finished:
            table = tabulate(so_far, units)
            shown, text = table.to_dict(), write_study(so_far, units, table, out, command)
    common.show({"out": out, **shown}, f"{text}\n{Path(out) / MARKDOWN}")


@contextmanager
def _bar() -> Generator[Callable[[str, int, int], None]]:
    """A progress bar over the processes; lines where nobody watches."""
    import sys

    if not sys.stderr.isatty():
        yield lambda name, done, total: typer.echo(f"{done}/{total}  {name}", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task("", total=None)

    def tell(name: str, done: int, total: int) -> None:
        progress.update(task, completed=done, total=total, description=name)

    with progress:
        yield tell
