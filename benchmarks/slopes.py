"""How time and memory grow with the text: the slopes of their logarithms against that of the length.

1: linear; 2: with the square; 0: not at all. The first lengths, where starting costs more than reading, are part of it.
The interval is that of the slopes of the rounds, each fitted alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .common import median_interval


def all_slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of every contender that was measured at two lengths or more."""
    found = [slopes(name, rows) for name in dict.fromkeys(row["contender"] for row in rows)]
    return [row for row in found if row["num_lengths"] > 1]


def slopes(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The slopes of one contender; None where there are fewer than two lengths."""
    mine = [row for row in rows if row["contender"] == name and "median_s" in row]
    tokens = [row["tokens"] for row in mine]
    found: dict[str, Any] = {"contender": name, "num_lengths": len(mine)}
    if len(mine) < 2:
        return {**found, "time_slope": None, "memory_slope": None}
    rounds = zip(*(row["seconds"] for row in mine), strict=True)
    interval = median_interval([log_slope(tokens, seconds) for seconds in rounds])
    memory = [row["peak_memory_mb"] for row in mine]
    known = all(value is not None and value > 0 for value in memory)
    return {
        **found,
        "time_slope": interval["median"],
        "low_time_slope": interval["low"],
        "high_time_slope": interval["high"],
        "confidence": interval["confidence"],
        "memory_slope": log_slope(tokens, memory) if known else None,
    }


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y against log x.

    Example:
        >>> round(log_slope([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    across, up = [math.log(value) for value in x], [math.log(value) for value in y]
    middle, height = sum(across) / len(across), sum(up) / len(up)
    spread = sum((a - middle) ** 2 for a in across)
    return sum((a - middle) * (b - height) for a, b in zip(across, up, strict=True)) / spread
