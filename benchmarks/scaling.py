"""How time and memory grow with the text: the slopes of their logarithms against that of the length.

    python -m benchmarks --only scaling [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 1000000]

1: linear; 2: with the square; 0: not at all. The first lengths, where starting costs more than reading, are part of it.
All lengths are read in every round, in an order of its own: a machine that is slower for a while is so for all of them,
where lengths that are read one after the other over an hour had a slope of the machine's. The interval is that of the
slopes of the rounds, each fitted alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from .common import (
    Budget,
    Contender,
    Peak,
    Report,
    Setting,
    by_turns,
    has_room,
    median_interval,
    peak_memory,
    seconds_of,
    timing,
)
from .models import load_for
from .peers import Peer, full_attention
from .reading import OURS, associative, text_of


def run(setting: Setting, peak: Peak) -> Report:
    """Seconds and peak memory against the length, and a row with the slopes of each contender."""
    report = Report("scaling", "tokens", ("median_s", "peak_memory_mb"))
    model = load_for(setting)
    length = model.memory_config.segment_length
    peers = [Peer(OURS, lambda ids: model.fold(model.read(ids))), associative(model, setting), full_attention(model)]
    budget = Budget(setting, report)
    runs: list[tuple[Peer, int, Contender]] = []
    memory_mb: list[float | None] = []
    for size in setting.lengths(max(length, min(1024, setting.max_tokens))):
        tokens = max(1, size // length) * length
        ids = text_of(model.view.vocab_size, tokens, setting)
        for peer in peers:
            if not (
                (peer.limit is None or tokens <= peer.limit)
                and has_room(peer.bytes_of(tokens), setting.device)
                and budget.allows(peer.name, tokens, peer.power, tokens=tokens)
            ):
                continue
            contender = Contender(f"{peer.name}, {tokens}", partial(peer.read, ids))
            if all(other is not peer for other, _, _ in runs):
                contender.run()  # what is made once is not of the first length
            runs.append((peer, tokens, contender))
            with peak_memory(setting.device) as found:
                budget.took(peer.name, tokens, seconds_of(contender.run, setting.device))
            memory_mb.append(found["mb"])
    seconds = by_turns([contender for _, _, contender in runs], setting.rounds, setting.device, is_warm=True)
    for (peer, tokens, contender), mb in zip(runs, memory_mb, strict=True):
        row = {"contender": peer.name, "tokens": tokens, **timing(seconds[contender.name], tokens)}
        report.rows.append({**row, "peak_memory_mb": mb})
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
