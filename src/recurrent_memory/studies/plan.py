"""What a study runs: for every row and seed a training and an evaluation, as command lines of `rmt`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .definition import RowRecipe, Study

MODELS, EVALUATIONS, RECORDS = "models", "evaluations", "records"


@dataclass(frozen=True, slots=True)
class Unit:
    """A row with a seed.

    Args:
        row: The row's name.
        seed: Of its training.
        name: Of its files.
        model: The folder of its model, or the name of one that is not trained here.
        training: The arguments of `rmt` that make the model; None: another unit makes it, or it is there.
        evaluation: The arguments of `rmt` that evaluate it.
        out: The folder of the evaluation.
        records: The folder of records; one is written when a process has ended well.
    """

    row: str
    seed: int
    name: str
    model: str
    training: tuple[str, ...] | None
    evaluation: tuple[str, ...]
    out: Path
    records: Path

    def record(self, kind: str) -> Path:
        """The record of its "train" or "eval"."""
        return self.records / f"{self.name}-{kind}.json"


def plan(study: Study, out: Path, common: Sequence[str] = ()) -> list[Unit]:
    """The units of a study: all rows with the first seed, then all with the next.

    Args:
        study: The study.
        out: Its folder.
        common: Arguments of every command, such as `--threads 1`.
    """
    return [
        _unit(study, row, seed, out, common)
        for seed in study.seeds
        for row in study.rows
        if seed in study.seeds_of(row)
    ]


def chains(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units that use one model, the one that trains it first: what is run one after the other. In the order of units."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.model, []).append(unit)
    return [sorted(chain, key=lambda unit: unit.training is None) for chain in found.values()]


def _unit(study: Study, row: RowRecipe, seed: int, out: Path, common: Sequence[str]) -> Unit:
    source = row if row.like is None else study.row(row.like)
    model = source.model or str(out / MODELS / f"{source.slug}-seed-{seed}")
    training = None
    recipe = row.recipe or study.recipe
    if row is source and source.model is None and recipe is not None:
        changes = [f"{key}={json.dumps(value)}" for key, value in {**study.set, **row.set}.items()]
        training = ("train", recipe, *changes, f"out={model}", f"seed={seed}", "--resume", *common)
    name = f"{row.slug}-seed-{seed}"
    folder = out / EVALUATIONS / name
    options = options_of({**study.eval, **row.eval})
    evaluation = ("eval", model, *options, "--out", str(folder), "--resume", *common)
    return Unit(row.name, seed, name, model, training, evaluation, folder, out / RECORDS)


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of a command: `max_tokens: 9` is `--max-tokens 9`, `reset: true` is `--reset`.

    A list is given with commas, a mapping as the option once for each of its pairs; null and false are left out.
    """
    found: list[str] = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if value is True:
            found.append(option)
        elif isinstance(value, dict):
            for key, item in cast(dict[str, Any], value).items():
                found += [option, f"{key}={item}"]
        elif isinstance(value, list | tuple):
            found += [option, ",".join(map(str, cast(Sequence[Any], value)))]
        else:
            found += [option, str(value)]
    return found
