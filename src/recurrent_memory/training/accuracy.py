"""How many predictions are right: of a batch, and of a whole evaluation, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ..forward import IGNORE
from .bptt import Outcome
from .examples import Example


def num_right(outcome: Outcome, inputs: Mapping[str, Any], unanswerable: Tensor | None = None) -> tuple[int, int]:
    """How many predictions of a batch are right, and of how many: what accuracy is the share of.

    Where texts have questions, a prediction is an answer, and right if all of it is. Elsewhere it is a label.

    Args:
        outcome: What came of the batch.
        inputs: The batch.
        unanswerable: `[B]` rows without their answer, which are left out; None: there are none.
    """
    if "text_lengths" not in inputs:
        return int(outcome.num_right), outcome.num_labels
    is_asked = _is_asked(inputs["labels"])
    if unanswerable is not None:
        is_asked = is_asked & ~unanswerable
    return int((is_asked & (outcome.num_wrong == 0)).sum()), int(is_asked.sum())


class Tally:
    """Loss and accuracy of an evaluation, and the accuracy of each task where there are several.

    Args:
        tasks: The names of the tasks. Of one alone the accuracy is that of all.

    Attributes:
        sums: What was counted. Those of several processes may be added to each other.
    """

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        self.tasks = tuple(dict.fromkeys(tasks))
        if len(self.tasks) == 1:
            self.tasks = ()
        self.sums = [0.0] * (4 + 2 * len(self.tasks))

    def add(self, outcome: Outcome, inputs: Mapping[str, Any], examples: Sequence[Example]) -> None:
        """Count what came of a batch.

        Args:
            outcome: What came of it; its loss is a sum over labels.
            inputs: The batch.
            examples: What it was made of, one for each row.
        """
        found = [float(outcome.loss), outcome.num_labels, *num_right(outcome, inputs)]
        if self.tasks:
            is_asked = _is_asked(inputs["labels"])
            is_right = is_asked & (outcome.num_wrong == 0)
            for task in self.tasks:
                rows = [row for row, example in enumerate(examples) if example.get("task") == task]
                found += [int(is_right[rows].sum()), int(is_asked[rows].sum())]
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)]

    def metrics(self, prefix: str) -> dict[str, float]:
        """`<prefix>_loss`, `<prefix>_accuracy`, and `<prefix>_accuracy_<task>` of each task that was asked about."""
        loss, num_labels, right, count, *by_task = self.sums
        metrics = {f"{prefix}_loss": loss / max(num_labels, 1.0), f"{prefix}_accuracy": right / max(count, 1.0)}
        for task, task_right, task_count in zip(self.tasks, by_task[::2], by_task[1::2], strict=True):
            if task_count:
                metrics[f"{prefix}_accuracy_{task}"] = task_right / task_count
        return metrics


def _is_asked(labels: Tensor) -> Bool[Tensor, " B"]:
    return (labels != IGNORE).reshape(len(labels), -1).any(1)
