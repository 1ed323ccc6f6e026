"""A picture of accuracy against length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_write
from .length_table import Line


def draw_lengths(lines: Sequence[Line], path: str | Path, *, title: str, chance: float | None = None) -> None:
    """Accuracy against length with 95 % intervals, beside the memory reset; and by place of the fact, where it varies.

    Args:
        lines: The table.
        path: A PNG file.
        title: What was evaluated.
        chance: The accuracy of guessing, drawn as a line.

    Raises:
        OutputError: if it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    whole = [line for line in lines if line.by == "length"]
    places = [line for line in lines if line.by == "position"]
    panels = 2 if places else 1
    figure, axes = plt.subplots(1, panels, figsize=(6.4 * panels, 4), layout="constrained", squeeze=False)
    axis = axes[0][0]
    lengths = [line.length for line in whole]
    for values, label, colour in (
        ([(line.accuracy, line.low, line.high) for line in whole], "memory", "tab:green"),
        ([(line.reset_accuracy, line.reset_low, line.reset_high) for line in whole], "memory reset", "0.55"),
    ):
        middle = [value for value, _, _ in values]
        below = [max(0.0, value - low) for value, low, _ in values]
        above = [max(0.0, high - value) for value, _, high in values]
        axis.errorbar(lengths, middle, yerr=[below, above], label=label, color=colour, marker="o", capsize=3)
    if chance is not None:
        axis.axhline(chance, color="0.75", linestyle=":", label="chance")
    axis.set(xscale="log", xlabel="tokens of the text", ylabel="accuracy", ylim=(-0.03, 1.03))
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    if places:
        _draw_places(axes[0][1], places, figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def _draw_places(axis: object, lines: Sequence[Line], figure: object) -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    assert isinstance(axis, Axes)
    assert isinstance(figure, Figure)
    lengths = sorted({line.length for line in lines})
    groups = sorted({line.group for line in lines})
    found = {(line.length, line.group): line for line in lines}
    grid = [
        [found[length, group].accuracy if (length, group) in found else float("nan") for length in lengths]
        for group in groups
    ]
    image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for y, group in enumerate(groups):
        for x, length in enumerate(lengths):
            line = found.get((length, group))
            if line is not None:
                axis.text(x, y, f"{line.accuracy:.2f}\nn={line.n}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(groups)), groups, fontsize=8)
    axis.set(xlabel="tokens of the text", ylabel="place of the fact (share of the text)")
    figure.colorbar(image, ax=axis, label="accuracy")
