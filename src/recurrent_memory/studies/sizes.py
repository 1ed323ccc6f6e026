"""A picture of how much a memory holds for its size: accuracy against the bytes of a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import atomic_write
from .table import Cell, StudyTable


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """The accuracies of memories of several sizes at one length, or number of facts.

    Args:
        at: Which one.
        sizes: Bytes of one text's memory, from small to large.
        cells: The accuracies, one for each size.
    """

    at: str
    sizes: list[int]
    cells: list[Cell]


def by_size(table: StudyTable, cells: Sequence[Cell]) -> list[SizeCurve]:
    """What a table says of sizes; nothing, where all its memories that were measured are of one size.

    Args:
        table: The table.
        cells: One accuracy for each row and place, such as those of all seeds together.
    """
    sizes = _sizes(table)
    if len(set(sizes.values())) < 2:
        return []
    curves: list[SizeCurve] = []
    for at in dict.fromkeys(cell.at for cell in cells):
        mine = sorted((cell for cell in cells if cell.at == at and cell.row in sizes), key=lambda cell: sizes[cell.row])
        curves.append(SizeCurve(at, [sizes[cell.row] for cell in mine], mine))
    return curves


def _sizes(table: StudyTable) -> Mapping[str, int]:
    return {cost.row: cost.state_bytes for cost in table.costs if cost.state_bytes}


def draw_sizes(table: StudyTable, cells: Sequence[Cell], path: str | Path, *, title: str, places: str) -> bool:
    """Draw accuracy against bytes, a curve for each place, the rows named at their sizes.

    Args:
        table: The table.
        cells: As for `by_size`.
        path: A PNG file.
        title: What was studied.
        places: What a curve is of: "facts", "tokens of the text".

    Returns:
        Whether there was something to draw.

    Raises:
        OutputError: if it cannot be written.
    """
    curves = by_size(table, cells)
    if not curves:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colours = plt.get_cmap("viridis")
    for number, curve in enumerate(curves):
        below = [cell.value - (cell.value if cell.low is None else cell.low) for cell in curve.cells]
        above = [(cell.value if cell.high is None else cell.high) - cell.value for cell in curve.cells]
        errors = [[max(0.0, value) for value in side] for side in (below, above)]
        colour = colours(0.9 * number / max(1, len(curves) - 1))
        values = [cell.value for cell in curve.cells]
        axis.errorbar(
            curve.sizes, values, yerr=errors, label=curve.at, color=colour, marker="o", markersize=4, capsize=2
        )
    named = _sizes(table)
    for size in sorted(set(named.values())):
        axis.axvline(size, color="0.9", zorder=0)
        names = "\n".join(row for row, own in named.items() if own == size)
        axis.annotate(names, (size, 1.02), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
    axis.set(xscale="log", xlabel="bytes of the memory of one text", ylabel="accuracy", ylim=(-0.03, 1.03))
    axis.legend(frameon=False, fontsize=8, title=places, title_fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    return True
