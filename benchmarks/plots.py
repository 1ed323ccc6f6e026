"""Plots of a report: one picture for each measure, a line for each contender, intervals shaded."""

from __future__ import annotations

from pathlib import Path

from .common import Report


def plot(report: Report, folder: Path) -> list[Path]:
    """Write `<name>-<measure>.png`. Contenders without a figure are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["contender"] for row in report.rows))
    written: list[Path] = []
    for measure in report.y:
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for index, name in enumerate(names):
            rows = [r for r in report.rows if r["contender"] == name and r.get(measure) and r.get(report.x)]
            if measure.startswith("times_"):
                rows = [row for row in rows if row["peer"] != name]  # of itself it is one, everywhere
            if not rows:
                continue
            x = [row[report.x] for row in rows]
            axes.plot(x, [row[measure] for row in rows], marker="o", label=name, color=f"C{index}")
            low, high = (f"{side}_{measure.removeprefix('median_')}" for side in ("low", "high"))
            if all(low in row and high in row for row in rows):
                lows, highs = [row[low] for row in rows], [row[high] for row in rows]
                axes.fill_between(x, lows, highs, alpha=0.2, color=f"C{index}")
        axes.set(xscale="log", yscale="log", xlabel=report.x.replace("_", " "), ylabel=measure.replace("_", " "))
        axes.grid(visible=True, which="both", alpha=0.2)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        written.append(folder / f"{report.name}-{measure}.png")
        figure.savefig(written[-1], dpi=130)
        plt.close(figure)
    return written
