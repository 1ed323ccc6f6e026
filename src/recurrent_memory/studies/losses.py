"""A picture of the language models of a study: the loss by position in the segment, and the perplexity by history, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.perplexity_table import perplexity
from ..files import atomic_write

Curve = list[tuple[int, str, float]]
"""The first number of a range, the range, the mean loss in it."""


def pooled(evaluations: Sequence[Mapping[str, Any]], by: str) -> Curve:
    """The mean losses of several evaluations of the same tokens together, by ranges.

    Args:
        evaluations: Their `results.json`.
        by: As in `evaluation.perplexity_table.Line`.
    """
    sums: dict[tuple[int, str], tuple[float, int]] = {}
    for line in (line for results in evaluations for line in results["lines"] if line["by"] == by):
        key = line["first"], line["group"]
        nll, n = sums.get(key, (0.0, 0))
        sums[key] = nll + line["nll"] * line["n"], n + line["n"]
    return [(first, group, nll / n) for (first, group), (nll, n) in sorted(sums.items())]


_STYLES = ("-", "--", ":", "-.")


def draw_losses(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, *, title: str, like: Mapping[str, str | None]
) -> None:
    """Draw the rows of a study: a colour for each model, a style of lines for each way that it was evaluated in.

    Args:
        rows: The `results.json` of each row's evaluations, `--task lm` all.
        path: A PNG file.
        title: What was studied.
        like: The row whose model a row has; None: its own.

    Raises:
        OutputError: if it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(like.get(name) or name for name in rows))
    colours = matplotlib.colormaps["tab20" if len(models) > 10 else "tab10"]
    ways = dict.fromkeys(models, 0)
    height = 4.5 + 0.2 * math.ceil(len(rows) / 3)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, height), layout="constrained")
    ticks: tuple[dict[int, str], dict[int, str]] = {}, {}
    for name, evaluations in rows.items():
        model = like.get(name) or name
        colour, style = colours(models.index(model) % colours.N), _STYLES[ways[model] % len(_STYLES)]
        ways[model] += 1
        position = pooled(evaluations, "position_with_history") or pooled(evaluations, "position")
        history = [(first, group, perplexity(nll) or math.inf) for first, group, nll in pooled(evaluations, "history")]
        for axis, curve, seen in ((left, position, ticks[0]), (right, history, ticks[1])):
            # Ranges double, so that their numbers are places on a logarithmic axis; widths differ from row to row.
            places = [first.bit_length() for first, _, _ in curve]
            values = [value for _, _, value in curve]
            axis.plot(places, values, label=name, marker="o", markersize=4, color=colour, linestyle=style)
            seen.update({place: group for place, (_, group, _) in zip(places, curve, strict=True)})
    left.set(
        xlabel="tokens of its own segment before the predicting one, after the first segment",
        ylabel="loss (nats a token)",
    )
    right.set(xlabel="segments of history", ylabel="perplexity")
    for axis, seen in zip((left, right), ticks, strict=True):
        axis.set_xticks(sorted(seen), [seen[place] for place in sorted(seen)], rotation=45, ha="right", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
