"""What `benchmarks/whereabouts.py` has measured, as CSV, JSON, Markdown and a plot."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from recurrent_memory.evaluation.intervals import wilson
from recurrent_memory.evaluation.tables import write_json
from recurrent_memory.files import atomic_write

TITLES = {
    "anywhere": "one fact anywhere",
    "first": "one fact first",
    "four": "four people, two of whom move again",
    "distractors": "one fact anywhere, a look-alike sentence every 1,024 tokens",
}
CHANCE = 1 / 6


def write_report(out: Path) -> None:
    """Write `accuracy.csv`, `.json`, `.md` and `.png` from the rows of every job in `<out>/rows`."""
    files = sorted((out / "rows").glob("*.jsonl"))
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    lines = summarise(rows)
    with atomic_write(out / "accuracy.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    write_json(lines, out / "accuracy.json")
    with atomic_write(out / "accuracy.md") as temporary:
        temporary.write_text(tables(lines), encoding="utf-8")
    with atomic_write(out / "accuracy.png") as temporary:
        plot(lines, temporary)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a mode and length: accuracy and its 95 % Wilson interval, with memory and with it reset."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["mode"], row["length"]].append(row)
    lines: list[dict[str, Any]] = []
    for (mode, length), group in sorted(groups.items()):
        line: dict[str, Any] = {"mode": mode, "tokens": length, "segments": -(-length // 128), "questions": len(group)}
        for name in ("right", "reset_right"):
            hits = sum(row[name] for row in group)
            low, high = wilson(hits, len(group))
            prefix = "" if name == "right" else "reset_"
            line |= {
                f"{prefix}accuracy": hits / len(group),
                f"{prefix}low": round(low, 6),
                f"{prefix}high": round(high, 6),
            }
        lines.append(line)
    return lines


def tables(lines: list[dict[str, Any]]) -> str:
    """A table a mode, and whether the reset model is at chance from 64 segments on."""
    parts: list[str] = []
    for mode, title in TITLES.items():
        of_mode = [line for line in lines if line["mode"] == mode]
        if not of_mode:
            continue
        head = f"| {title}: tokens | segments | questions | accuracy (95 % interval) | memory reset at every segment |"
        parts += [head, "|---|---|---|---|---|"]
        for line in of_mode:
            accuracy, reset = _with_interval(line), _with_interval(line, "reset_")
            parts.append(f"| {line['tokens']:,} | {line['segments']:,} | {line['questions']} | {accuracy} | {reset} |")
        parts.append("")
    far = [line for line in lines if line["segments"] >= 64]
    inside = sum(line["reset_low"] <= CHANCE <= line["reset_high"] for line in far)
    parts.append(
        f"From 64 segments on the interval of the reset model holds chance, 1/6, in {inside} of {len(far)} lines."
    )
    return "\n".join(parts) + "\n"


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against length, logarithmic, intervals shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for index, (mode, title) in enumerate(TITLES.items()):
        chosen = [line for line in lines if line["mode"] == mode]
        if not chosen:
            continue
        x = [line["tokens"] for line in chosen]
        low, high = [line["low"] for line in chosen], [line["high"] for line in chosen]
        axes.plot(x, [line["accuracy"] for line in chosen], marker="o", label=title, color=f"C{index}")
        axes.fill_between(x, low, high, alpha=0.15, color=f"C{index}")
    reset = [line for line in lines if line["mode"] == "anywhere"]
    x, y = [line["tokens"] for line in reset], [line["reset_accuracy"] for line in reset]
    axes.plot(x, y, "k--", marker=".", label="memory reset at every segment")
    axes.axhline(CHANCE, color="grey", linewidth=0.8, linestyle=":", label="chance (1/6)")
    axes.set(xscale="log", xlabel="tokens read", ylabel="accuracy", ylim=(0, 1.03))
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def _with_interval(line: dict[str, Any], prefix: str = "") -> str:
    return f"{line[f'{prefix}accuracy']:.3f} ({line[f'{prefix}low']:.3f}–{line[f'{prefix}high']:.3f})"
