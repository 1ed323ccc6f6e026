"""How far a memory goes: the length up to which accuracy is held, beside the length that was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import MemoryConfig
from ..training.experiment import load_experiment
from .definition import Study
from .plan import Unit

if TYPE_CHECKING:
    from .table import Cell


@dataclass(frozen=True, slots=True)
class Held:
    """A row's.

    Args:
        row: The row's name.
        level: The accuracy that is to be held.
        tokens: The longest of the measured lengths at which it is, as at all shorter ones; None: not at the shortest.
        is_longest: Whether that is the longest that was measured: it may be held further.
        trained_tokens: The longest text that gradients went back through; None: the row was not trained here.
    """

    row: str
    level: float
    tokens: int | None
    is_longest: bool
    trained_tokens: int | None

    @property
    def ratio(self) -> float | None:
        """How many times the trained length the held one is."""
        return None if self.tokens is None or not self.trained_tokens else self.tokens / self.trained_tokens

    def __str__(self) -> str:
        if self.tokens is None:
            return f"{self.row}: accuracy {self.level:.0%} is not held at the shortest length."
        more = " (the longest that was read)" if self.is_longest else ""
        times = (
            "" if self.ratio is None else f", {self.ratio:.3g} times the {self.trained_tokens:,} that it was trained on"
        )
        return f"{self.row}: accuracy {self.level:.0%} is held for {self.tokens:,} tokens{more}{times}."


def held(study: Study, cells: Sequence[Cell], units: Sequence[Unit]) -> list[Held]:
    """For every row of a study that asks for it.

    Args:
        study: The study.
        cells: One accuracy for each row and length; others are passed over.
        units: What was run.
    """
    if study.held is None:
        return []
    found: list[Held] = []
    for row in study.rows:
        mine = {int(cell.at): cell.value for cell in cells if cell.row == row.name and cell.metric == "accuracy"}
        longest: int | None = None
        for length in sorted(mine):
            if mine[length] < study.held:
                break
            longest = length
        training = next((unit.training for unit in units if unit.row == (row.like or row.name) and unit.training), None)
        trained = None if training is None else trained_tokens(training)
        found.append(Held(row.name, study.held, longest, longest is not None and longest == max(mine), trained))
    return found


def trained_tokens(training: Sequence[str]) -> int | None:
    """The longest text of a training, by its command; None where the model brings its own segments."""
    _, recipe, *changes = training
    experiment = load_experiment(recipe, changes[: changes.index("--resume")])
    if experiment.backbone is None:
        return None
    segments = max(stage.num_segments for stage in experiment.plan().planned())
    return segments * MemoryConfig.from_dict(experiment.memory).segment_length
