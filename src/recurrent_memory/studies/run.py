"""Runs a study: trainings, each with the evaluations of its model after it, several at a time; what is done is kept.

Each is a process of its own, with a log of its own, so that none takes memory from the next, and each goes on by itself where
it was interrupted (`--resume`).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError, RecipeError
from ..evaluation.provenance import checkout_now, machine
from ..evaluation.tables import write_json
from ..locking import alone_in
from .definition import Study
from .plan import EVALUATIONS, MODELS, RECORDS, Unit, chains, plan
from .spent import Spent

STUDY = "study.json"
Tell = Callable[[str, int, int], None]


def run_study(
    study: Study, out: str | Path, *, jobs: int = 1, common: Sequence[str] = (), resume: bool = False, tell: Tell
) -> Generator[tuple[Study, list[Unit]]]:
    """Train and evaluate what a study describes.

    Args:
        study: The study.
        out: The folder: `study.json`, `models/`, `evaluations/`, and `records/` with a log and a record of each process.
        jobs: Processes at a time.
        common: Arguments of every command, such as `--threads 1`.
        resume: Whether to go on with what is in the folder, if only with other seeds or rows.
        tell: Called with the name of what has ended, how many have, and all.

    Yields:
        Whenever all rows are there for one more seed, the study of the seeds so far and its units; at last the whole.

    Raises:
        OutputError: if the folder holds a study already and `resume` is not set, another process is in it, or it cannot be written.
        InputError: if it is another one.
        RecipeError: if a training or an evaluation fails.
    """
    folder = Path(out)
    with alone_in(folder):
        _open(folder, study, resume=resume)
        units = plan(study, folder, common)
        runner = _Runner(jobs, 2 * len(units), tell)
        waiting, shown = list(units), 0
        with closing(runner.run(chains(units))) as chained:
            for ended in chained:
                waiting = [unit for unit in waiting if unit not in ended]
                seeds = _before(study.seeds, {unit.seed for unit in waiting})
                if len(seeds) > shown:
                    shown = len(seeds)
                    yield study.model_copy(update={"seeds": seeds}), [unit for unit in units if unit.seed in seeds]


def _before(seeds: tuple[int, ...], unfinished: Set[int]) -> tuple[int, ...]:
    return tuple(itertools.takewhile(lambda seed: seed not in unfinished, seeds))


def _open(folder: Path, study: Study, *, resume: bool) -> None:
    path = folder / STUDY
    described: dict[str, Any] = json.loads(json.dumps(study.model_dump()))
    # Rows too: one of a name is the same, though.
    may_differ = ("expected", "time", "cost", "held", "seeds", "compare", "rows")
    if path.is_file():
        if not resume:
            raise OutputError(f"{folder}: holds a study already; go on with --resume, or give another --out")
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            before, begun = kept["study"], kept["begun"]
            other = sorted(k for k in described.keys() | before.keys() if described.get(k) != before.get(k))
            rows = {row["name"]: row for row in before["rows"]}
            changed = [row["name"] for row in described["rows"] if rows.get(row["name"], row) != row]
            all_rows = list((rows | {row["name"]: row for row in described["rows"]}).values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: is damaged ({error!r}); give another --out") from error
        if changed:
            raise InputError(f"{folder}: holds a study with another row {changed[0]!r}; give another --out")
        if other := [name for name in other if name not in may_differ]:
            raise InputError(f"{folder}: holds a study with another {', '.join(other)}; give another --out")
        write_json({"study": {**described, "rows": all_rows}, "begun": begun}, path)
        return
    try:
        for name in (MODELS, EVALUATIONS, RECORDS):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error
    write_json({"study": described, "begun": machine()}, path)


class _Runner:
    """Runs processes, some at a time, and stops them all when one fails or somebody interrupts."""

    def __init__(self, jobs: int, total: int, tell: Tell) -> None:
        self.jobs, self.total, self.tell = jobs, total, tell
        self.done = 0
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock, self.stopped = threading.Lock(), False

    def run(self, chained: Sequence[Sequence[Unit]]) -> Generator[Sequence[Unit]]:
        """Run every chain; gives each when it has ended."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._chain, chain): chain for chain in chained}
            try:
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            except BaseException as error:
                self._stop()
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt("interrupted; what is done is kept: go on with --resume") from error
                raise

    def _stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()

    def _chain(self, chain: Sequence[Unit]) -> None:
        for unit in chain:
            for kind, arguments in (("train", unit.training), ("eval", unit.evaluation)):
                self._one(unit, kind, arguments)
                with self.lock:
                    if self.stopped:
                        return
                    self.done += 1
                    self.tell(f"{unit.name} {kind}", self.done, self.total)

    def _one(self, unit: Unit, kind: str, arguments: tuple[str, ...] | None) -> None:
        path = unit.record(kind)
        if arguments is None or path.is_file():
            return
        log = path.with_suffix(".log")
        spent = Spent(path.with_suffix(".spent"))
        begun = {**machine(), **checkout_now()}
        with log.open("ab") as stream:
            with self.lock:
                if self.stopped:
                    return
                process = subprocess.Popen(
                    [sys.executable, "-m", "recurrent_memory", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
                self.running.add(process)
            status = spent.until_end(process)
            with self.lock:
                self.running.discard(process)
        if self.stopped:
            return
        if status:
            raise RecipeError(
                f"{unit.row}, seed {unit.seed}: `rmt {arguments[0]}` failed: {_last_line(log)} (log: {log}); "
                "what is done is kept: mend it, and go on with --resume"
            )
        write_json({"command": " ".join(["rmt", *arguments]), **spent.values(), "jobs": self.jobs, **begun}, path)
        spent.path.unlink(missing_ok=True)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("rmt: ") if lines else "it said nothing"
