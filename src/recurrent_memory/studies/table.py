"""The table of a study: what was measured for every row, of each seed and of all together, and what rows gain on others."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ..errors import InputError
from ..evaluation.folder import RESULTS
from ..evaluation.intervals import wilson
from ..evaluation.perplexity_compare import Comparison, compare
from .definition import Study
from .held import Held, held
from .plan import Unit

ALL_SEEDS = "all"


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure.

    Args:
        row: The row's name.
        seed: Of its training, or "all" of them together.
        metric: "accuracy", "accuracy, memory reset", or "perplexity".
        at: Tokens of the text, or facts in it; the way of reading; empty for a whole text.
        n: Questions, passages, or scored tokens of a seed.
        value: The figure; for perplexities of all seeds exp of the mean loss.
        low: The lower end of its 95 % Wilson interval; the lowest seed's, for perplexities.
        high: The upper end, likewise.
    """

    row: str
    seed: str
    metric: str
    at: str
    n: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row took.

    Args:
        row: The row's name.
        training_s: Seconds of its trainings, of all attempts together, the mean over seeds; None: it was not trained.
        evaluation_s: Likewise of its evaluations.
        training_peak_rss_mb: The most memory of a training's process, in 10^6 bytes; None where it was not recorded.
        evaluation_peak_rss_mb: The most memory of an evaluation, in 10^6 bytes; None where it was not recorded.
        state_bytes: Of one text's memory; None where it was not recorded.
    """

    row: str
    training_s: float | None
    evaluation_s: float
    training_peak_rss_mb: float | None
    evaluation_peak_rss_mb: float | None
    state_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gain:
    """What one row gains on another: over all seeds, their mean loss at each token, the interval over blocks of tokens.

    Args:
        of: The one.
        against: The other.
        comparison: Its `difference` is below 0 where `of` is better.
    """

    of: str
    against: str
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class StudyTable:
    """Everything that a study found."""

    cells: list[Cell]
    gains: list[Gain]
    costs: list[Cost]
    held: list[Held] = field(default_factory=list[Held])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def tabulate(study: Study, units: Sequence[Unit]) -> StudyTable:
    """The table of finished units.

    Raises:
        InputError: if an evaluation is missing or damaged, or two that are compared did not score the same tokens.
    """
    cells: list[Cell] = []
    for row in study.rows:
        mine = [unit for unit in units if unit.row == row.name]
        found = [_cells(unit, results_of(unit), study.by) for unit in mine]
        cells += [cell for group in found for cell in group]
        if len(found) > 1:
            cells += [_together([group[index] for group in found]) for index in range(len(found[0]))]
    folders = {row.name: [unit.out for unit in units if unit.row == row.name] for row in study.rows}
    gains = [Gain(of, against, compare(folders[against], folders[of])) for against, of in study.compare]
    costs = [_cost(study, row.name, units) for row in study.rows]
    return StudyTable(cells, gains, costs, held(study, shown(cells), units))


def shown(cells: Sequence[Cell]) -> list[Cell]:
    """One figure for each row and place: of all seeds together, where there are several."""
    several = {cell.row for cell in cells if cell.seed == ALL_SEEDS}
    return [cell for cell in cells if (cell.seed == ALL_SEEDS) == (cell.row in several)]


def results_of(unit: Unit) -> dict[str, Any]:
    """What the evaluation of a unit found.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = unit.out / RESULTS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove {unit.record('eval')}, and go on with --resume"
        ) from error


def _cells(unit: Unit, results: dict[str, Any], by: Literal["length", "facts"]) -> list[Cell]:
    seed = str(unit.seed)
    if results["task"] == "lm":
        return [Cell(unit.row, seed, "perplexity", "", results["scored_tokens"], results["perplexity"], None, None)]
    if results["task"] == "lambada":
        return [
            Cell(unit.row, seed, "accuracy", line["kind"], line["n"], line["accuracy"], line["low"], line["high"])
            for line in results["lines"]
            if line["segments_before"] == "all"
        ]
    cells: list[Cell] = []
    for line in (line for line in results["lines"] if line["by"] == by):
        at = str(line["length"]) if by == "length" else line["group"]
        for metric, prefix in (("accuracy", ""), ("accuracy, memory reset", "reset_")):
            value, low, high = line[f"{prefix}accuracy"], line[f"{prefix}low"], line[f"{prefix}high"]
            cells.append(Cell(unit.row, seed, metric, at, line["n"], value, low, high))
    return cells


def _together(cells: Sequence[Cell]) -> Cell:
    """The same figure of several seeds as one."""
    first = cells[0]
    if any((cell.metric, cell.at) != (first.metric, first.at) for cell in cells):
        raise InputError(f"{first.row}: its seeds were not evaluated alike; give the study another --out")
    values = [cell.value for cell in cells]
    if first.metric == "perplexity":
        mean = math.exp(fmean(math.log(value) for value in values))
        return Cell(first.row, ALL_SEEDS, first.metric, first.at, first.n, mean, min(values), max(values))
    trials = sum(cell.n for cell in cells)
    right = sum(round(cell.value * cell.n) for cell in cells)
    return Cell(first.row, ALL_SEEDS, first.metric, first.at, trials, right / trials, *wilson(right, trials))


def _cost(study: Study, name: str, units: Sequence[Unit]) -> Cost:
    row = study.row(name)
    mine = [unit for unit in units if unit.row == name]
    trained = [unit for unit in units if unit.row == (row.like or name) and unit.training is not None]
    results = [results_of(unit) for unit in mine]
    peaks = [float(found["peak_rss_mb"]) for found in results if "peak_rss_mb" in found]
    sizes = [int(found["state_bytes"]) for found in results if "state_bytes" in found]
    return Cost(
        name,
        fmean(_seconds(unit.record("train")) for unit in trained) if trained else None,
        fmean(_seconds(unit.record("eval")) for unit in mine),
        max((mb for unit in trained if (mb := _record(unit.record("train")).get("peak_rss_mb"))), default=None),
        max(peaks, default=None),
        max(sizes, default=None),
    )


def _seconds(record: Path) -> float:
    return float(_record(record)["elapsed_s"])


def _record(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return {**found, "elapsed_s": float(found["elapsed_s"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record}: cannot be read ({error}); remove it, and go on with --resume") from error
