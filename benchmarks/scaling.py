"""How time and memory grow with the text: the slopes of their logarithms against that of the length.

    python -m benchmarks --only scaling [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 1000000]

1: linear; 2: with the square; 0: not at all. The first lengths, where starting costs more than reading, are part of it.
The interval is that of the slopes of the rounds, each fitted alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from .common import Budget, Contender, Peak, Report, Setting, has_room, measure, median_interval
from .models import load_for
from .peers import Peer, full_attention
from .reading import OURS, associative, text_of


def run(setting: Setting, peak: Peak) -> Report:
    """Seconds and peak memory against the length, and a row with the slopes for each contender."""
    report = Report("scaling", "tokens", ("median_s", "peak_memory_mb"))
    model = load_for(setting)
    length = model.memory_config.segment_length
    budget = Budget(setting, report)
    peers = [Peer(OURS, lambda ids: model.fold(model.read(ids))), associative(model, setting), full_attention(model)]
    for size in setting.lengths(max(length, min(1024, setting.max_tokens))):
        tokens = max(1, size // length) * length
        ids = text_of(model.view.vocab_size, tokens, setting)
        running = [
            peer
            for peer in peers
            if (peer.limit is None or tokens <= peer.limit)
            and has_room(peer.bytes_of(tokens), setting.device)
            and budget.allows(peer.name, tokens, peer.power, tokens=tokens)
        ]
        contenders = [Contender(peer.name, partial(peer.read, ids)) for peer in running]
        for row in measure(contenders, tokens, setting, peak):
            budget.took(row["contender"], tokens, row["median_s"])
            report.rows.append(row)
    report.rows += [slopes(peer.name, report.rows) for peer in peers]
    return report


def slopes(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The slopes of one contender; None where there are fewer than two lengths."""
    mine = [row for row in rows if row["contender"] == name and "median_s" in row]
    tokens = [row["tokens"] for row in mine]
    found: dict[str, Any] = {"contender": name, "kind": "slope", "num_lengths": len(mine)}
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
