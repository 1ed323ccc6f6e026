"""Plots of a report: one picture for each measure, a line for each contender, intervals shaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .common import Report


def plot(report: Report, folder: Path) -> list[Path]:
    """Write `<name>-<measure>.png`. Contenders without a figure are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    names = list(dict.fromkeys(row["contender"] for row in report.rows))
    written: list[Path] = []
    for measure in report.y:
        is_ratio = measure.startswith("times_")
        figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
        lines = {name: _points(report, name, measure) for name in names}
        for index, (name, rows) in enumerate((name, rows) for name, rows in lines.items() if rows):
            x = [row[report.x] for row in rows]
            axes.plot(x, [row[measure] for row in rows], marker="o", label=name, color=f"C{index}")
            low, high = (f"{side}_{measure.removeprefix('median_')}" for side in ("low", "high"))
            if all(low in row and high in row for row in rows):
                lows, highs = [row[low] for row in rows], [row[high] for row in rows]
                axes.fill_between(x, lows, highs, alpha=0.2, color=f"C{index}")
        axes.set(xscale="log", xlabel=report.x.replace("_", " "), ylabel=measure.replace("_", " "))
        if is_ratio:
            axes.axhline(1, color="grey", linewidth=1)
        else:
            axes.set_yscale("log")
        ticks = sorted({row[report.x] for rows in lines.values() for row in rows})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, which="both", alpha=0.2)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", fontsize=8)
        written.append(folder / f"{report.name}-{measure}.png")
        figure.savefig(written[-1], dpi=130)
        plt.close(figure)
    return written


def _points(report: Report, name: str, measure: str) -> list[dict[str, Any]]:
    rows = [row for row in report.rows if row["contender"] == name and row.get(measure) and row.get(report.x)]
    if measure.startswith("times_"):
        return [row for row in rows if row["peer"] != name]  # of itself it is one, everywhere
    return rows
