"""A picture of perplexity: the loss by position in the segment, and the perplexity by history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_write
from .perplexity_table import Line


def draw_perplexity(lines: Sequence[Line], path: str | Path, *, title: str) -> None:
    """Draw the table.

    Args:
        lines: The table.
        path: A PNG file.
        title: What was evaluated.

    Raises:
        OutputError: if it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [line.group for line in lines if line.by == "position"]
    for by, label, colour in (
        ("position", "all segments", "0.55"),
        ("position_with_history", "after the first segment", "tab:green"),
    ):
        found = [line for line in lines if line.by == by]
        places = [names.index(line.group) for line in found]
        left.plot(places, [line.nll for line in found], label=label, color=colour, marker="o")
    left.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    left.set(xlabel="tokens of its own segment before the predicting one", ylabel="loss (nats a token)")
    left.legend(frameon=False, fontsize=9)
    found = [line for line in lines if line.by == "history" and line.perplexity is not None]
    right.plot(range(len(found)), [line.perplexity or 0.0 for line in found], color="tab:green", marker="o")
    right.set_xticks(range(len(found)), [line.group for line in found], rotation=45, ha="right", fontsize=8)
    right.set(xlabel="segments of history", ylabel="perplexity")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
