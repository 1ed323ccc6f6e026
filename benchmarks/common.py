"""How everything here is measured: contenders by turns in one process, medians with intervals, beside the machine's limit."""

from __future__ import annotations

import ctypes
import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from recurrent_memory.evaluation.provenance import machine
from recurrent_memory.inference.peak_memory import peak_rss_mb

SEED = 20261121


@dataclass(frozen=True)
class Setting:
    """What is measured on, and how much.

    Args:
        model: "small", "smollm2", "shipped", "tiny" or a model folder; see `models.py`.
        device: Where.
        max_tokens: Longest text.
        rounds: Runs of each contender at each length.
        budget_s: A contender whose next length would take longer is left out from there on, visibly.
        seed: Of weights and texts.
        min_tokens: Shortest text, of what is measured against the length of a text (reading, training, scaling).
        segment_length: S, of SmolLM2 and random models; None: see `models.py`.
        dtype: Of all models, and of the machine's limits.
    """

    model: str = "small"
    device: str = "cpu"
    max_tokens: int = 65_536
    rounds: int = 5
    budget_s: float = 3.0
    seed: int = SEED
    min_tokens: int = 1
    segment_length: int | None = None
    dtype: str = "float32"

    def lengths(self, first: int = 1024) -> list[int]:
        """Powers of four from `first`, those of `min_tokens` and more, and the longest."""
        count = max(0, math.ceil(math.log(self.max_tokens / first, 4)))
        sizes = {min(first, self.max_tokens), *(first * 4**power for power in range(count)), self.max_tokens}
        return sorted(size for size in sizes if size >= min(self.min_tokens, self.max_tokens))


@dataclass(frozen=True)
class Contender:
    """One way to do it.

    Args:
        name: In tables and plots.
        run: Does it once; what it returns is dropped.
        after: Puts back what the run changed; not timed.
    """

    name: str
    run: Callable[[], object]
    after: Callable[[], object] | None = None


@dataclass
class Report:
    """The rows of one benchmark.

    Args:
        name: Its name.
        x, y: What its plot shows, by the keys of the rows.
        rows: One for each contender and length.
    """

    name: str
    x: str
    y: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, contender: str, why: str, **where: Any) -> None:
        """A contender that is not measured is said to be so."""
        self.rows.append({"contender": contender, "skipped": why, **where})
        print(f"  {contender}: skipped, {why}", file=sys.stderr, flush=True)


class Budget:
    """Leaves out a contender from the length on that would take too long, by its time at the length before."""

    def __init__(self, setting: Setting, report: Report) -> None:
        self._setting, self._report = setting, report
        self._last: dict[str, tuple[int, float]] = {}
        self._out: set[str] = set()

    def allows(self, name: str, size: int, power: float = 1.0, **where: Any) -> bool:
        """Whether it is run. `power`: by how much its time grows with the size."""
        if name in self._out:
            return False
        if name not in self._last:
            return True
        before, seconds = self._last[name]
        expected = seconds * (size / before) ** power
        if expected <= self._setting.budget_s:
            return True
        self._out.add(name)
        why = f"about {expected:.0f} s a run from here on, more than {self._setting.budget_s:.0f} s"
        self._report.skip(name, why, **where)
        return False

    def took(self, name: str, size: int, seconds: float) -> None:
        """How long it was."""
        self._last[name] = (size, seconds)


def synchronize(device: str) -> None:
    """Until the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: str) -> float:
    """One run."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def by_turns(
    contenders: Sequence[Contender], rounds: int, device: str, *, is_warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each contender: all once to warm up, then all in every round, so that what slows the machine slows all.

    `is_warm`: they have run already.

    Each round has an order of its own: what a contender leaves in the caches is not always the same one's burden (a model
    read 28,600 tokens/s where it always came after Mamba, and 36,000 where it did not).
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    rng = random.Random(SEED)
    for index in range(int(is_warm), rounds + 1):
        for contender in rng.sample(contenders, len(contenders)):
            took = seconds_of(contender.run, device)
            if contender.after is not None:
                contender.after()
            if index:
                seconds[contender.name].append(took)
    return seconds


def median_interval(values: Sequence[float]) -> dict[str, float]:
    """The median, and the narrowest interval between two values that holds the true median 95 % of the time.

    By the order statistics, whatever the distribution is. Fewer than six values cannot hold it that often: then it is all
    of them, and `confidence` says how often.
    """
    ordered, n = sorted(values), len(values)
    cover = [1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    k = max((k for k, confidence in enumerate(cover) if confidence >= 0.95), default=0)
    middle = statistics.median(ordered)
    return {"median": middle, "low": ordered[k], "high": ordered[n - 1 - k], "confidence": round(max(cover[k], 0.0), 4)}


def timing(seconds: Sequence[float], tokens: int) -> dict[str, Any]:
    """Seconds and tokens per second of some runs, for a row."""
    found = median_interval(seconds)
    return {
        "seconds": [round(s, 6) for s in seconds],
        "median_s": found["median"],
        "low_s": found["low"],
        "high_s": found["high"],
        "confidence": found["confidence"],
        "tokens_per_s": tokens / found["median"],
        "low_tokens_per_s": tokens / found["high"],
        "high_tokens_per_s": tokens / found["low"],
    }


def flops_of(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and attentions of one run; those in eight bits count as well."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._int_mm: _product}) as counter:
        run()
    return counter.get_total_flops()


def _product(left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


@dataclass(frozen=True)
class Peak:
    """The machine's own limits, measured beside.

    Args:
        flops_per_s: Of a large square matrix product.
        bytes_per_s: Read by a matrix–vector product that does not fit a cache.
    """

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def measure(cls, device: str, size: int = 2048, rounds: int = 5, dtype: str = "float32") -> Peak:
        like = torch.zeros((), device=device, dtype=getattr(torch, dtype))
        a = like.new_empty(size, size).normal_()
        wide = like.new_empty(8 * size, 2 * size).normal_()
        vector = like.new_empty(2 * size).normal_()
        seconds = by_turns(
            [Contender("product", lambda: a @ a), Contender("vector", lambda: wide @ vector)], rounds, device
        )
        return cls(
            2 * size**3 / statistics.median(seconds["product"]),
            wide.numel() * wide.element_size() / statistics.median(seconds["vector"]),
        )


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float | None]]:
    """Fills `mb`, 10^6 bytes: the most memory taken while it lasts, over what was taken before; None: not known here."""
    gc.collect()
    found: dict[str, float | None] = {"mb": None}
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found["mb"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        return
    before_mb = _fresh_rss_mb()
    yield found
    if before_mb is not None:
        found["mb"] = max(0.0, peak_rss_mb() - before_mb)


def _fresh_rss_mb() -> float | None:
    """Gives free memory back, sets the process's peak to what it has now, and says how much that is."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return None
    return peak_rss_mb()


def costs_of(run: Callable[[], object], device: str) -> tuple[float | None, int]:
    """Peak memory of one run over what was there before, in 10^6 bytes, and its floating-point operations."""
    with peak_memory(device) as found:
        flops = flops_of(run)
    return found["mb"], flops


def has_room(num_bytes: float, device: str) -> bool:
    """Whether so much is less than half of the memory that is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    return num_bytes < free / 2


def measure(
    contenders: Sequence[Contender], tokens: int, setting: Setting, peak: Peak, **where: Any
) -> list[dict[str, Any]]:
    """A row for each contender: its time by turns with the others, its memory, its share of the machine's peak."""
    seconds = by_turns(contenders, setting.rounds, setting.device)
    rows: list[dict[str, Any]] = []
    for contender in contenders:
        memory_mb, flops = costs_of(contender.run, setting.device)
        if contender.after is not None:
            contender.after()
        row = {"contender": contender.name, "tokens": tokens, **where, **timing(seconds[contender.name], tokens)}
        row |= {"peak_memory_mb": memory_mb, "matmul_flops": flops}
        row["share_of_matmul_peak"] = flops / row["median_s"] / peak.flops_per_s
        print(
            f"  {contender.name:<40} {where or ''} {row['tokens_per_s']:>12,.1f} tokens/s", file=sys.stderr, flush=True
        )
        rows.append(row)
    return rows


def add_ratios(rows: Sequence[dict[str, Any]], peer: str, key: str = "times_peer") -> None:
    """How many times as fast as the peer each contender of a length was: the median over the rounds, run by run."""
    theirs = next((row["seconds"] for row in rows if row["contender"] == peer), None)
    if theirs is None:
        return
    for row in rows:
        found = median_interval([a / b for a, b in zip(theirs, row["seconds"], strict=True)])
        row |= {
            key: found["median"],
            f"low_{key}": found["low"],
            f"high_{key}": found["high"],
            "peer": peer,
        }


def provenance(setting: Setting, peak: Peak) -> dict[str, Any]:
    """What is needed to make the figures again."""
    device = setting.device
    return {
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        **machine(),
        "seed": setting.seed,
        "setting": vars(setting),
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "matmul_gflops_per_s": round(peak.flops_per_s / 1e9, 1),
        "read_gb_per_s": round(peak.bytes_per_s / 1e9, 2),
    }
