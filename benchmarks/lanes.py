"""Many texts at once: ours in lanes, beside one after the other, and the plain research loop both ways.

    python -m benchmarks --only lanes [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 65536]

Texts of equal length, so that the plain loop can take them as one batch; lanes take any lengths. `--max-tokens` are those of
sixteen texts together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from recurrent_memory import MemoryReader, RecurrentMemoryModel

from . import plain_loop
from .common import Budget, Contender, Peak, Report, Setting, add_ratios, has_room, measure
from .models import load_for
from .reading import PLAIN, faster, text_of

LANES, ALONE, INT8 = "ours, lanes", "ours, one by one", "ours, lanes, int8"
COMPILED = "ours, lanes, compiled"
PLAIN_BATCH = f"{PLAIN}, one batch"
PLAIN_ALONE = f"{PLAIN}, one by one"
MOST = 16

Read = Callable[[Tensor], Tensor]


def run(setting: Setting, peak: Peak) -> Report:
    """Tokens per second and peak memory against the number of texts."""
    report = Report("lanes", "texts", ("tokens_per_s", "peak_memory_mb"))
    model = load_for(setting)
    length = model.memory_config.segment_length
    tokens = max(1, setting.max_tokens // MOST // length) * length
    ways: dict[str, Read] = {LANES: partial(lanes, model), ALONE: partial(one_by_one, model)}
    ways |= {name: partial(lanes, other) for name, other in faster(model, report, COMPILED, INT8)}
    ways |= {PLAIN_BATCH: partial(plain_loop.read, model), PLAIN_ALONE: partial(_plain_one_by_one, model)}
    budget = Budget(setting, report)
    for texts in (1, 4, MOST):
        ids = text_of(model.view.vocab_size, texts * tokens, setting).view(texts, tokens)
        logits = 8 * tokens * model.view.vocab_size
        kept = {PLAIN_BATCH: texts * logits, PLAIN_ALONE: logits}
        running = {
            name: read
            for name, read in ways.items()
            if has_room(kept.get(name, 0), setting.device) and budget.allows(name, texts, texts=texts)
        }
        contenders = [Contender(name, partial(read, ids)) for name, read in running.items()]
        rows = measure(contenders, texts * tokens, setting, peak, texts=texts)
        for row in rows:
            budget.took(row["contender"], texts, row["median_s"])
        add_ratios(rows, PLAIN_ALONE)
        if PLAIN_BATCH in running:
            theirs = ways[PLAIN_BATCH](ids)
            for row in (row for row in rows if row["contender"] in (LANES, ALONE, COMPILED, INT8)):
                read, is_exact = running[row["contender"]](ids), row["contender"] != INT8
                row["memory_difference_from_plain"] = plain_loop.memory_difference(read, theirs, is_exact=is_exact)
        report.rows += rows
    return report


def lanes(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """`[B, M, D]` of texts `[B, T]`, side by side."""
    states = dict(MemoryReader(model).read_many(list(ids), lanes=MOST))
    return torch.cat([model.fold(states[number]).memory for number in range(len(ids))])


def one_by_one(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """The same, one text after the other."""
    return torch.cat([model.fold(model.read(text[None])).memory for text in ids])


def _plain_one_by_one(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    return torch.cat([plain_loop.read(model, text[None]) for text in ids])
