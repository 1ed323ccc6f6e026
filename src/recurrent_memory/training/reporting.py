"""What a training tells whoever waits for it: rows, in place of what the `Trainer` prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

Row = dict[str, Any]
OF_A_TASK = "eval_accuracy_"
Report = Callable[[Row], None]


class RowsCallback(TrainerCallback):
    """Calls a function with a row after every step that is logged, and after every evaluation.

    A row has `stage` (from 0), `num_stages`, `num_segments`, `step`, `max_steps`, `elapsed_s` (of the stage), and what was
    measured: `loss` and `accuracy`, or `eval_loss`, `eval_accuracy` and, of several tasks by name,
    `eval_accuracy_of_tasks`.

    Args:
        report: The function.
        stage: The stage's number, from 0.
        num_stages: How many there are.
        num_segments: The largest number of segments of its examples.
    """

    def __init__(self, report: Report, stage: int, num_stages: int, num_segments: int) -> None:
        self._report = report
        self._row: Row = {"stage": stage, "num_stages": num_stages, "num_segments": num_segments}
        self._started = time.monotonic()

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._started = time.monotonic()

    def on_log(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        known: Row = {name: logs[name] for name in ("loss", "accuracy", "eval_loss", "eval_accuracy") if name in logs}
        if of_tasks := {name.removeprefix(OF_A_TASK): logs[name] for name in logs if name.startswith(OF_A_TASK)}:
            known["eval_accuracy_of_tasks"] = of_tasks
        if not known or not state.is_world_process_zero:
            return
        elapsed_s = round(time.monotonic() - self._started, 1)
        step = {"step": state.global_step, "max_steps": state.max_steps, "elapsed_s": elapsed_s}
        self._report({**self._row, **step, **known})


def report_rows(trainer: Trainer, callback: RowsCallback) -> None:
    """Report rows, and print nothing."""
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    trainer.add_callback(callback)
