"""A picture of a demonstration: where the facts were, what was answered, and what was kept."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..files import atomic_write
from .demonstration import Demonstration


def draw(shown: Demonstration, path: str | Path) -> None:
    """Draw a demonstration as a PNG file.

    Raises:
        OutputError: if it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    asked = shown.asked[:40]
    height = max(2.6, 0.42 * len(asked) + 1.4)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), width_ratios=(3, 1), layout="constrained")
    for row, item in enumerate(asked):
        colour = "tab:green" if item.right else "tab:red"
        left.plot([0, shown.tokens], [row, row], color="0.85", linewidth=5, solid_capstyle="round", zorder=1)
        left.plot(item.at_token, row, "o", color=colour, markersize=9, zorder=2)
        near_end = item.at_token > 0.55 * shown.tokens
        label = f"{item.sentence} → {item.question} {item.answer or '(nothing)'} ({item.probability:.0%})"
        left.annotate(
            label,
            (item.at_token, row),
            xytext=(-8 if near_end else 8, 8),
            textcoords="offset points",
            ha="right" if near_end else "left",
            fontsize=8.5,
        )
    left.set(
        yticks=[],
        ylim=(len(asked) - 0.4, -0.8),
        xlim=(-0.01 * shown.tokens, 1.01 * shown.tokens),
        xlabel="token of the text",
    )
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    left.set_title(
        f"{sum(a.right for a in shown.asked)} of {shown.questions} answered rightly, {shown.tokens:,} tokens read once",
        fontsize=10,
    )
    left.spines[["left", "top", "right"]].set_visible(False)
    values = [shown.state_bytes, shown.full_attention_kv_bytes]
    right.bar(["memory", "KV cache of\nfull attention"], values, color=["tab:green", "0.6"])
    right.set(yscale="log", ylabel="bytes kept")
    right.bar_label(right.containers[0], [_size(value) for value in values], fontsize=9)  # pyright: ignore[reportArgumentType]
    right.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a model may answer in any script
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def _size(num_bytes: int) -> str:
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
