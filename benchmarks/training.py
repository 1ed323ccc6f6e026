"""Training against the number of segments: ours with full and with recomputed backpropagation, beside the plain loop.

    python -m benchmarks --only training [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 8192]

Language modelling of one text of 1 … 64 segments. All three must find the same loss, and the same gradient of the first
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.training.bptt import Backpropagation, backpropagate

from . import plain_loop
from .common import Budget, Contender, Peak, Report, Setting, measure
from .models import load
from .reading import text_of

MAX_SEGMENTS = 64
PLAIN = "plain research loop"


def run(setting: Setting, peak: Peak) -> Report:
    """Tokens per second and peak memory against the number of segments."""
    report = Report("training", "segments", ("tokens_per_s", "peak_memory_mb"))
    model = load(setting.model, setting.device, setting.seed).train()
    length = model.memory_config.segment_length
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "ours, full": lambda ids: _ours(model, ids, Backpropagation("full")),
        "ours, recomputed": lambda ids: _ours(model, ids, Backpropagation("recompute")),
        PLAIN: lambda ids: plain_loop.train(model, ids),
    }
    budget = Budget(setting, report)
    most = max(1, min(MAX_SEGMENTS, setting.max_tokens // length))
    for segments in [2**power for power in range(most.bit_length())]:
        ids = text_of(model.view.vocab_size, segments * length, setting)
        running = [name for name in steps if budget.allows(name, segments, segments=segments)]
        losses, gradients = {}, {}
        for name in running:
            model.zero_grad()
            losses[name] = steps[name](ids)
            gradients[name] = model.memory.initial_memory.grad.clone()
        contenders = [Contender(name, partial(steps[name], ids), model.zero_grad) for name in running]
        for row in measure(contenders, ids.numel(), setting, peak, segments=segments):
            name = row["contender"]
            budget.took(name, segments, row["median_s"])
            if PLAIN in losses:
                row["loss_difference_from_plain"] = float((losses[name] / losses[PLAIN] - 1).abs())
                scale = gradients[PLAIN].abs().max()
                row["gradient_difference_from_plain"] = float((gradients[name] - gradients[PLAIN]).abs().max() / scale)
            report.rows.append({**row, "loss": float(losses[name])})
    return report


def _ours(model: RecurrentMemoryModel, ids: Tensor, method: Backpropagation) -> Tensor:
    labels = ids.clone()
    labels[:, 0] = -100  # nothing stands before it
    return backpropagate(model, ids, labels, method=method).loss
