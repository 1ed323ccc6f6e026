"""The README of a folder of results: what was run, where, and the figures as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = {
    "texts": "texts",
    "tokens": "tokens",
    "tokens_read": "tokens read",
    "tokens_written": "tokens written",
    "segment_length": "tokens a segment",
    "segments": "segments",
    "tokens_per_s": "tokens/s",
    "times_peer": "times the plain loop",
    "times_sequential": "times one segment after the other",
    "memory_difference_from_sequential": "memory, off that",
    "memory_difference_from_plain": "memory, off the plain loop's",
    "ms_per_token": "ms a token",
    "time_slope": "slope of time",
    "memory_slope": "slope of memory",
    "num_lengths": "lengths",
    "kept_bytes": "bytes kept",
    "peak_memory_mb": "peak memory, MB",
    "share_of_matmul_peak": "share of the matrix-product peak",
    "share_of_read_peak": "share of the reading peak",
}
INTERVALS = ("tokens_per_s", "times_peer", "times_sequential", "ms_per_token", "time_slope")


def readme(documents: Sequence[dict[str, Any]]) -> str:
    """Markdown for the JSON documents of a folder."""
    parts = ["# Speed and memory, beside their peers\n"]
    for found in documents:
        commit = f"{found['commit'][:12]}{', with changes' if found['has_uncommitted_changes'] else ''}"
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        machine = found["accelerator"] or f"{found['processor']}, {found['threads']} of {found['cores']} cores"
        parts += [
            f"## {found['benchmark'].capitalize()}\n",
            f"`{found['command']}`, commit {commit}, {found['date']}, {machine}, {versions}. Beside it, the machine multiplies "
            f"matrices at {found['matmul_gflops_per_s']:,} GFLOP/s and reads memory at {found['read_gb_per_s']:,} GB/s.\n",
            table(found["rows"]),
        ]
    return "\n".join(parts)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each row; medians with their intervals, and why what is missing is missing."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [["", *(COLUMNS[key] for key in keys)], ["---"] * (len(keys) + 1)]
    for row in rows:
        cells = [_cell(row, key) for key in keys]
        lines.append([f"{row['contender']}: {row['skipped']}" if "skipped" in row else row["contender"], *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_readme(folder: Path) -> None:
    """Of all that is in the folder."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    (folder / "README.md").write_text(readme(documents), encoding="utf-8")


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if key in INTERVALS and f"low_{key}" in row:
        return f"{_number(value)} ({_number(row[f'low_{key}'])}–{_number(row[f'high_{key}'])})"
    return _number(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
