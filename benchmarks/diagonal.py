"""The diagonal schedule beside one segment after the other, by the size of the model and the length of a segment.

    python -m benchmarks --only diagonal [--device cuda --dtype bfloat16] [--max-tokens 65536]

Memories in every layer, over Llama layers with random weights: what is computed does not change with them. A text is of 32
segments, or as many as `--max-tokens` has room for. Both schedules must write the same memory.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from recurrent_memory import MemoryConfig, MemoryState, RecurrentMemoryModel

from .common import Budget, Contender, Peak, Report, Setting, add_ratios, measure
from .models import SHAPES, Shape, llama, remember
from .reading import text_of

KINDS = ("associative", "per-layer")
SEQUENTIAL, DIAGONAL = "sequential", "diagonal"
SEGMENTS = 32
NUM_MEMORY_TOKENS = 16
CHECKED_SEGMENTS = 16
Took = dict[tuple[int, str], tuple[int, float]]  # (segment length, schedule) → layers × width², seconds
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def run(setting: Setting, peak: Peak) -> Report:
    """How many times as fast the diagonals are, against the tokens of a segment."""
    report = Report("diagonal", "segment_length", ("times_sequential", "tokens_per_s", "peak_memory_mb"))
    sizes, lengths = _sizes(setting)
    for kind in KINDS:
        smaller: Took = {}
        for (layers, width), length in product(sizes, lengths):
            report.rows += _rows(kind, layers, width, length, setting, peak, Budget(setting, report), smaller)
    return report


def _sizes(setting: Setting) -> tuple[list[tuple[int, int]], list[int]]:
    """Layers and widths, and the tokens of a segment."""
    if setting.model == "tiny":
        return [(2, 16)], [8]
    if setting.device.startswith("cuda"):
        return [(12, 256), (12, 768), (SHAPES["1b"].layers, SHAPES["1b"].width)], [32, 128, 512, 1024]
    return [(4, 128), (12, 256), (12, 768)], [32, 128, 512]


def _rows(
    kind: str, layers: int, width: int, length: int, setting: Setting, peak: Peak, budget: Budget, smaller: Took
) -> list[dict[str, Any]]:
    """Both schedules. `smaller`: the last size that was measured with such segments; this one takes its place."""
    name = f"{kind}, {layers} layers of {width}"
    work = layers * width**2
    segments = max(1, min(SEGMENTS, setting.max_tokens // length))
    where = {"segment_length": length, "segments": segments}
    names = {schedule: f"{name}, {schedule}" for schedule in (SEQUENTIAL, DIAGONAL)}
    for schedule, named in names.items():
        if (length, schedule) in smaller:
            budget.took(named, *smaller[length, schedule])
    if not all(budget.allows(named, work, **where) for named in names.values()):
        return []
    model = build(kind, layers, width, length, setting)
    ids = text_of(model.view.vocab_size, segments * length, setting)
    check_same(model, ids)
    contenders = [Contender(names[schedule], partial(read, model, ids, schedule)) for schedule in names]
    rows = measure(contenders, segments * length, setting, peak, **where)
    smaller |= {(length, schedule): (work, row["median_s"]) for schedule, row in zip(names, rows, strict=True)}
    add_ratios(rows, names[SEQUENTIAL], "times_sequential")
    states = [read(model, ids, schedule) for schedule in names]
    rows[1]["memory_difference_from_sequential"] = difference(states[1], states[0])
    return rows


def build(kind: str, layers: int, width: int, length: int, setting: Setting) -> RecurrentMemoryModel:
    """A model of random weights; heads of 64, feed-forward layers of 8/3 the width."""
    heads = max(1, width // 64)
    torch.manual_seed(setting.seed)
    shape = Shape(1024, width, 8 * width // 3, layers, heads, heads, length, NUM_MEMORY_TOKENS)
    model = RecurrentMemoryModel.from_backbone(llama(shape), MemoryConfig(NUM_MEMORY_TOKENS, length, kind=kind))
    if kind == "associative":
        remember(model)
    return model.to(setting.device, getattr(torch, setting.dtype)).eval()


def read(model: RecurrentMemoryModel, ids: Tensor, schedule: str) -> MemoryState:
    """The state after a text, all of it folded."""
    return model.fold(model.read(ids, schedule=schedule))


def check_same(model: RecurrentMemoryModel, ids: Tensor) -> None:
    """Raise where the schedules do not write the same memory.

    Of the first segments, more than there are layers: untrained associative memories grow without an end (numbers of 10^10 after 16
    segments of twelve layers of 768), and make as much of a difference in the last digit, ten times more every few segments.

    Raises:
        RuntimeError: if they are further apart than rounding: then it is not the same work that is timed.
    """
    some = ids[:, : CHECKED_SEGMENTS * model.memory_config.segment_length]
    apart = difference(read(model, some, DIAGONAL), read(model, some, SEQUENTIAL))
    tolerance = TOLERANCE[model.dtype]
    if not apart <= tolerance:
        raise RuntimeError(f"the diagonals do not write the same memory: {apart:.2g} apart, more than {tolerance}")


def difference(ours: MemoryState, other: MemoryState) -> float:
    """How far two memories are apart: the largest difference of a tensor, of the other's largest number."""
    return max(
        float(((ours.tensors[name] - t).abs().max() / t.abs().max()).detach()) for name, t in other.tensors.items()
    )
