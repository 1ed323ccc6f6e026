"""How the rows of a study were trained: loss and accuracy by optimizer step, in training and held out, as a table and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..files import atomic_write
from .plan import Unit

STATE = "trainer_state.json"
Held = Literal["held_out_loss", "held_out_accuracy"]
_NAMES = {"held_out_loss": "held-out loss", "held_out_accuracy": "held-out accuracy"}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured after a step of a training; None: it was not.

    Args:
        row: The row's name.
        seed: Of the training.
        step: Optimizer steps, over all stages.
        loss: In training, the mean since the one before.
        accuracy: The same.
        held_out_loss: On examples that are not trained on.
        held_out_accuracy: The same.
    """

    row: str
    seed: int
    step: int
    loss: float | None
    accuracy: float | None
    held_out_loss: float | None
    held_out_accuracy: float | None


def measured(units: Sequence[Unit]) -> list[Measured]:
    """What was measured in the trainings of a study, from their last checkpoints; nothing of one whose checkpoints are gone.

    Args:
        units: What was run.
    """
    return [point for unit in units if unit.training is not None for point in _of_training(unit)]


def _of_training(unit: Unit) -> list[Measured]:
    found: list[Measured] = []
    before = 0
    try:
        for stage in _numbered(Path(f"{unit.model}.run"), "stage-*"):
            last = _numbered(stage, "checkpoint-*")[-1]
            state = json.loads((last / STATE).read_text(encoding="utf-8"))
            rows = [_measured(unit, before, row) for row in state["log_history"]]
            found += [row for row in rows if (row.loss, row.held_out_loss) != (None, None)]
            before += int(state["global_step"])
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return []  # a picture less, of a study that is whole
    return found


def _measured(unit: Unit, before: int, row: dict[str, Any]) -> Measured:
    names = ("loss", "accuracy", "eval_loss", "eval_accuracy")
    return Measured(unit.row, unit.seed, before + int(row["step"]), *(row.get(name) for name in names))


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """The folders of a pattern by the number after its first dash."""
    return sorted(folder.glob(pattern), key=lambda path: int(path.name.split("-")[1]))


def draw_trainings(points: Sequence[Measured], path: str | Path, *, title: str, held: Held) -> bool:
    """Draw the loss in training, and what was measured held out: a colour for each row, a curve for each seed.

    Args:
        points: From `measured`.
        path: A PNG file.
        title: What was studied.
        held: What of the held-out examples.

    Returns:
        Whether there was anything to draw.

    Raises:
        OutputError: if it cannot be written.
    """
    if not points:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    rows = list(dict.fromkeys(point.row for point in points))
    colours = matplotlib.colormaps["tab20" if len(rows) > 10 else "tab10"]
    for axis, value, name in zip(panels, ("loss", held), ("loss in training", _NAMES[held]), strict=True):
        for number, row in enumerate(rows):
            for seed in dict.fromkeys(point.seed for point in points if point.row == row):
                mine = [point for point in points if (point.row, point.seed) == (row, seed)]
                curve = [(p.step, y) for p in mine if (y := getattr(p, value)) is not None and math.isfinite(y)]
                if curve:
                    axis.plot(
                        *zip(*curve, strict=True), label=row, color=colours(number % colours.N), marker=".", linewidth=1
                    )
        axis.set(xlabel="optimizer steps", ylabel=name, xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    if unique:
        figure.legend(
            list(unique.values()), list(unique), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    return True
