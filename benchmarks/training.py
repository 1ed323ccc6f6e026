"""Training against the number of segments: ours with full and with recomputed backpropagation, beside the plain loop.

    python -m benchmarks --only training [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 8192]

One text of 1 … 64 segments, with a label at every position (language modelling), and with labels at the last few alone (a task
and its answer): the published code computes all logits then too. All must find the same loss, and the same gradient of the
first memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.training.bptt import Backpropagation, backpropagate

from . import plain_loop
from .common import Budget, Contender, Peak, Report, Setting, add_ratios, measure
from .models import load_for
from .reading import PLAIN, text_of

MAX_SEGMENTS = 64
ANSWER = 8
Step = Callable[[Tensor, Tensor], Tensor]


def run(setting: Setting, peak: Peak) -> Report:
    """Tokens per second and peak memory against the number of segments."""
    report = Report("training", "segments", ("tokens_per_s", "peak_memory_mb"))
    model = load_for(setting).train()
    length = model.memory_config.segment_length
    steps: dict[str, Step] = {
        "ours, full": partial(_ours, model, Backpropagation("full")),
        "ours, recomputed": partial(_ours, model, Backpropagation("recompute")),
        PLAIN: partial(plain_loop.train, model),
    }
    budget = Budget(setting, report)
    most = max(1, min(MAX_SEGMENTS, setting.max_tokens // length))
    numbers = [2**power for power in range(most.bit_length())]
    for segments in [number for number in numbers if number * length >= setting.min_tokens] or numbers[-1:]:
        ids = text_of(model.view.vocab_size, segments * length, setting)
        everywhere, answer = ids.clone(), ids.clone()
        answer[:, :-ANSWER] = -100
        everywhere[:, 0] = answer[:, 0] = -100  # nothing stands before it
        for labels, suffix in ((everywhere, ""), (answer, ", an answer")):
            ways = {name + suffix: partial(step, ids, labels) for name, step in steps.items()}
            ways = {name: way for name, way in ways.items() if budget.allows(name, segments, segments=segments)}
            rows = _compared(model, ways, PLAIN + suffix, segments, setting, peak)
            for row in rows:
                budget.took(row["contender"], segments, row["median_s"])
            report.rows += rows
    return report


def _compared(
    model: RecurrentMemoryModel,
    ways: dict[str, Callable[[], Tensor]],
    plain: str,
    segments: int,
    setting: Setting,
    peak: Peak,
) -> list[dict[str, Any]]:
    """A row for each way, with its time beside the plain one's, and how far its loss and gradient are off."""
    losses, gradients = dict[str, Tensor](), dict[str, Tensor]()
    for name, way in ways.items():
        model.zero_grad()
        losses[name] = way()
        gradients[name] = model.memory.initial_memory.grad.clone()
    contenders = [Contender(name, way, model.zero_grad) for name, way in ways.items()]
    tokens = segments * model.memory_config.segment_length
    rows = measure(contenders, tokens, setting, peak, segments=segments)
    for row in rows:
        name = row["contender"]
        row["loss"] = float(losses[name])
        if plain in losses:
            row["loss_difference_from_plain"] = float((losses[name] / losses[plain] - 1).abs())
            scale = gradients[plain].abs().max()
            row["gradient_difference_from_plain"] = float((gradients[name] - gradients[plain]).abs().max() / scale)
    add_ratios(rows, plain)
    return rows


def _ours(model: RecurrentMemoryModel, method: Backpropagation, ids: Tensor, labels: Tensor) -> Tensor:
    return backpropagate(model, ids, labels, method=method).loss
