"""A study's table as files: CSV, JSON, Markdown and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.provenance import machine
from ..evaluation.tables import write_csv, write_json
from ..files import atomic_write
from .definition import Study
from .losses import draw_losses
from .plan import Unit
from .run import STUDY
from .sizes import draw_sizes
from .table import Cell, StudyTable, results_of, shown
from .trainings import Measured, draw_trainings, measured

TABLE, SUMMARY, MARKDOWN = "table.csv", "results.json", "table.md"
PLOT, SIZES, LOSSES = "plot.png", "sizes.png", "losses.png"
TRAININGS, CURVES = "trainings.csv", "trainings.png"

_PLACES = {"length": "tokens of the text", "facts": "facts in the text"}


def write_study(study: Study, units: Sequence[Unit], table: StudyTable, out: str | Path, command: str) -> str:
    """Write the files of a finished study; gives the Markdown.

    Args:
        study: The study.
        units: What was run.
        table: What was found.
        out: The folder.
        command: What makes it again.

    Raises:
        OutputError: if something cannot be written.
    """
    folder = Path(out)
    begun = json.loads((folder / STUDY).read_text(encoding="utf-8"))["begun"]
    values = {"name": study.name, "command": command, "begun": begun, "ended": machine(), "seeds": list(study.seeds)}
    values["commands"] = [" ".join(["rmt", *arguments]) for arguments in _commands(units)]
    write_json({**values, **table.to_dict()}, folder / SUMMARY)
    write_csv(Cell, table.cells, folder / TABLE)
    text = markdown(study, table)
    with atomic_write(folder / MARKDOWN) as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(study, table, folder / PLOT)
    accuracies = [cell for cell in shown(table.cells) if cell.metric == "accuracy" and cell.at.isdigit()]
    draw_sizes(table, accuracies, folder / SIZES, title=study.name, places=_PLACES[study.by])
    rows = {row.name: [results_of(unit) for unit in units if unit.row == row.name] for row in study.rows}
    is_of_texts = all(results["task"] == "lm" for evaluations in rows.values() for results in evaluations)
    if is_of_texts:
        draw_losses(rows, folder / LOSSES, title=study.name, like={row.name: row.like for row in study.rows})
    points = measured(units)
    held = "held_out_loss" if is_of_texts else "held_out_accuracy"
    if draw_trainings(points, folder / CURVES, title=study.name, held=held):
        write_csv(Measured, points, folder / TRAININGS)
    return text


def _commands(units: Sequence[Unit]) -> list[tuple[str, ...]]:
    return [arguments for unit in units for arguments in (unit.training, unit.evaluation) if arguments is not None]


def markdown(study: Study, table: StudyTable) -> str:
    """The table for a person: a line for each row, a column for each figure, its interval (or range of seeds) beside it."""
    cells = shown(table.cells)
    columns = list(dict.fromkeys((cell.metric, cell.at) for cell in cells))
    head = ["", *(f"{metric}{f' at {at}' if at else ''}" for metric, at in columns), "training", "evaluation", "memory"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row, cost in zip(study.rows, table.costs, strict=True):
        mine = {(cell.metric, cell.at): cell for cell in cells if cell.row == row.name}
        figures = [_figure(mine[column]) if column in mine else "" for column in columns]
        training = "—" if cost.training_s is None else _cost(cost.training_s, cost.training_peak_rss_mb)
        memory = "" if cost.state_bytes is None else f"{cost.state_bytes:,} bytes"
        lines.append(
            _line([row.name, *figures, training, _cost(cost.evaluation_s, cost.evaluation_peak_rss_mb), memory])
        )
    for gain in table.gains:
        c = gain.comparison
        interval = "" if c.low is None or c.high is None else f" ({c.low:+.4f} to {c.high:+.4f})"
        lines += [
            "",
            f"{gain.of} against {gain.against}: {c.difference:+.4f} nats a token{interval}, {c.ratio:.4f} times the perplexity, "
            f"{c.scored_tokens:,} tokens.",
        ]
    for of_row in table.held:
        lines += ["", str(of_row)]
    return "\n".join(lines) + "\n"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _figure(cell: Cell) -> str:
    digits = 2 if cell.metric == "perplexity" else 3
    if cell.low is None or cell.high is None:
        return f"{cell.value:.{digits}f}"
    return f"{cell.value:.{digits}f} ({cell.low:.{digits}f}–{cell.high:.{digits}f})"


def _cost(seconds: float, peak_rss_mb: float | None) -> str:
    duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return duration if peak_rss_mb is None else f"{duration}, {peak_rss_mb / 1000:.1f} GB"


def draw(study: Study, table: StudyTable, path: str | Path) -> None:
    """Accuracy against length, a curve for each row; or perplexities, a point for each.

    Raises:
        OutputError: if it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = [cell for cell in shown(table.cells) if cell.metric != "accuracy, memory reset"]
    is_curve = all(cell.at.isdigit() for cell in cells)
    height = 4.0 if is_curve else 1.0 + 0.4 * len(cells)
    figure, axis = plt.subplots(figsize=(7, height), layout="constrained")
    if is_curve:
        for row in study.rows:
            mine = sorted((cell for cell in cells if cell.row == row.name), key=lambda cell: int(cell.at))
            axis.errorbar(
                [int(cell.at) for cell in mine],
                [cell.value for cell in mine],
                yerr=_errors(mine),
                label=row.name,
                marker="o",
                markersize=4,
                capsize=2,
            )
        axis.set(
            xscale="log",
            xlabel=_PLACES[study.by],
            ylabel="accuracy",
            ylim=(-0.03, 1.03),
        )
        axis.legend(frameon=False, fontsize=8)
    else:
        names = [f"{cell.row}{f', {cell.at}' if cell.at else ''}" for cell in cells]
        places = range(len(cells))[::-1]
        axis.errorbar([cell.value for cell in cells], places, xerr=_errors(cells), fmt="o", capsize=3)
        axis.set_yticks(list(places), names, fontsize=8)
        axis.set(xlabel=cells[0].metric)
    axis.set_title(study.name, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def _errors(cells: Sequence[Cell]) -> list[list[float]]:
    below = [cell.value - cell.low if cell.low is not None else 0.0 for cell in cells]
    above = [cell.high - cell.value if cell.high is not None else 0.0 for cell in cells]
    return [[max(0.0, value) for value in side] for side in (below, above)]
