"""How far a training on carried lanes has come: rows of its log, and when a stage has ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import atomic_write
from .recipe import Stage

AVERAGE = 0.97
MIN_STEPS = 100
PROGRESS_FILE = "progress.json"


@dataclass(slots=True)
class Progress:
    """What has been reached: a row of the log. Shares and losses are averages over the last steps."""

    stage: int = 0
    step: int = 0
    steps: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    stage_elapsed_s: float = 0.0
    loss: float = 0.0
    accuracy: float = 0.0
    accuracy_old: float = 0.0
    probe_accuracy: float = 0.0
    unknown_confidence: float = 0.0
    moved: float = 0.0
    lost: float = 0.0
    lost_old: float = 0.0
    mean_age: float = 0.0

    def begin(self, stage: int) -> None:
        """Stand at the beginning of a stage."""
        self.stage, self.step, self.stage_elapsed_s = stage, 0, 0.0

    def count(self, elapsed_s: float) -> None:
        """A step more, which took so long."""
        self.step += 1
        self.steps += 1
        self.elapsed_s += elapsed_s
        self.stage_elapsed_s += elapsed_s

    def has_ended(self, stage: Stage) -> bool:
        """Whether the stage has reached its limit or its target."""
        if self.step >= stage.max_steps:
            return True
        return stage.target is not None and self.step >= MIN_STEPS and self.accuracy >= stage.target

    def row(self) -> dict[str, Any]:
        """All of it, rounded."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        (folder / PROGRESS_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Read it from a checkpoint.

        Raises:
            RecipeError: if it is missing or damaged.
        """
        path = folder / PROGRESS_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RecipeError(
                f"{path}: cannot be read ({error}); remove {folder} to resume from an older checkpoint"
            ) from error


def average(before: float, now: float, counted: int | None = None) -> float:
    """A moving average; of all that there is while fewer than it looks back on were `counted`."""
    keep = AVERAGE if counted is None else min(AVERAGE, counted / (counted + 1))
    return keep * before + (1 - keep) * now


def write_log(path: Path, steps: int) -> Callable[[dict[str, Any]], None]:
    """A function that appends rows to a file of JSON lines, after the first `steps` steps that are in it.

    What a killed training has logged after its last checkpoint is logged again, and so is taken out.
    """
    kept: list[str] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["steps"] > steps:
                    break
            except (ValueError, KeyError, TypeError):  # cut short when it was killed
                break
            kept.append(f"{line}\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")

    def log(row: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    return log
