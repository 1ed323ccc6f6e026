"""Loss and accuracy of a training as a picture, drawn anew at every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import atomic_write
from .reporting import OF_A_TASK

PANELS = (("loss", ("loss", "eval_loss")), ("accuracy", ("accuracy", "eval_accuracy")))
NAMES = {"loss": "training", "accuracy": "training", "eval_loss": "held out", "eval_accuracy": "held out"}


def draw_curves(log_history: list[dict[str, float]], path: Path) -> None:
    """Draw loss and accuracy over optimizer steps, in training and held out, there of each task too, as a PNG.

    Args:
        log_history: Rows with a `step`, as `TrainerState` keeps them.
        path: The file. An existing one is replaced.

    Raises:
        OutputError: if it cannot be written.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, keys) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in log_history if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=NAMES[key], marker=".", linewidth=1)
        axes.set(xlabel="optimizer steps", ylabel=title)
        if title == "accuracy":
            for key in sorted({key for row in log_history for key in row if key.startswith(OF_A_TASK)}):
                points = [(row["step"], row[key]) for row in log_history if key in row]
                axes.plot(*zip(*points, strict=True), label=key.removeprefix(OF_A_TASK), linestyle="--", linewidth=0.8)
            axes.set_ylim(-0.02, 1.02)
        if axes.get_lines():
            axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


class CurvesCallback(TrainerCallback):
    """Writes `curves.png` into the output folder, at every checkpoint and at the end."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._draw(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See `TrainerCallback`."""
        self._draw(args, state)

    def _draw(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            draw_curves(state.log_history, Path(args.output_dir) / "curves.png")
