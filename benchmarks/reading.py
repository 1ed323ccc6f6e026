"""Reading beside its peers: the plain research loop, full attention, a sliding window, Mamba, another package.

    python -m benchmarks.reading [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 65536] [--out FOLDER] [--json]

Ours and the plain loop are the same weights on the same text: how far their final memories are apart stands beside them. Ours
with an associative memory has the same backbone; the others have its shape, or as many parameters.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from recurrent_memory import RecurrentMemoryError, RecurrentMemoryModel

if __name__ == "__main__" and not __package__:  # run as a file, which knows nothing of the package around it (PEP 366)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    __package__ = "benchmarks"

from . import plain_loop
from .common import Budget, Contender, Peak, Report, Setting, add_ratios, has_room, measure
from .models import associative_like, load_for
from .peers import PACKAGE, Peer, full_attention, lucidrains, mamba, sliding_window

OURS, SLOW, COMPILED, INT8 = "ours", "ours, no shortcuts", "ours, compiled", "ours, int8"
ASSOCIATIVE = "ours, associative"
PLAIN = "plain research loop"


def run(setting: Setting, peak: Peak) -> Report:
    """Tokens per second, seconds and peak memory against the length of the text."""
    report = Report("reading", "tokens", ("tokens_per_s", "median_s", "peak_memory_mb"))
    model = load_for(setting)
    length = model.memory_config.segment_length

    ours = partial(_read, model)

    def without_shortcuts(ids: Tensor) -> Tensor:
        model.fast = "off"
        try:
            return ours(ids)
        finally:
            model.fast = "auto"

    ways = {OURS: ours, SLOW: without_shortcuts}
    ways |= {name: partial(_read, other) for name, other in faster(model, report, COMPILED, INT8)}
    peers = [Peer(name, read) for name, read in ways.items()]
    peers.append(associative(model, setting))
    peers += [Peer(PLAIN, lambda ids: plain_loop.read(model, ids), bytes_of=_logits_of(model))]
    peers += [full_attention(model), sliding_window(model), mamba(model)]
    package = lucidrains(model)
    if isinstance(package, str):
        report.skip(PACKAGE, package)
    else:
        peers.append(package)
    budget = Budget(setting, report)
    for size in setting.lengths(max(length, min(1024, setting.max_tokens))):
        tokens = max(1, size // length) * length
        ids = text_of(model.view.vocab_size, tokens, setting)
        running = [peer for peer in peers if _can_run(peer, tokens, setting, report, budget)]
        contenders = [Contender(peer.name, partial(peer.read, ids)) for peer in running]
        rows = measure(contenders, tokens, setting, peak)
        for row in rows:
            budget.took(row["contender"], tokens, row["median_s"])
        add_ratios(rows, PLAIN)
        if PLAIN in {peer.name for peer in running}:
            theirs = plain_loop.read(model, ids)
            for row in (row for row in rows if row["contender"] in ways):
                read, is_exact = ways[row["contender"]](ids), row["contender"] != INT8
                row["memory_difference_from_plain"] = plain_loop.memory_difference(read, theirs, is_exact=is_exact)
        report.rows += rows
    return report


def associative(model: RecurrentMemoryModel, setting: Setting) -> Peer:
    """The same backbone with an associative memory, one segment after the other (`diagonal.py` has the other schedule)."""
    other = associative_like(model, setting.seed)
    return Peer(ASSOCIATIVE, lambda ids: other.fold(other.read(ids)))


def _read(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    return model.fold(model.read(ids)).memory


def faster(
    model: RecurrentMemoryModel, report: Report, compiled: str, int8: str
) -> Iterator[tuple[str, RecurrentMemoryModel]]:
    """Copies of a model that read in other ways, by the names that they are to have; one that cannot be is a row that says so."""
    other = copy.deepcopy(model)
    other.fast = "compile"
    yield compiled, other
    other = copy.deepcopy(model)
    try:
        other.to_int8()
    except RecurrentMemoryError as error:
        report.skip(int8, str(error))
        return
    yield int8, other


def text_of(vocab_size: int, tokens: int, setting: Setting) -> Tensor:
    """`[1, T]` random tokens."""
    generator = torch.Generator().manual_seed(setting.seed)
    return torch.randint(vocab_size, (1, tokens), generator=generator).to(setting.device)


def _logits_of(model: object):
    return lambda tokens: 4 * 2 * tokens * model.view.vocab_size  # type: ignore[attr-defined]


def _can_run(peer: Peer, tokens: int, setting: Setting, report: Report, budget: Budget) -> bool:
    if peer.limit is not None and tokens > peer.limit:
        report.skip(peer.name, f"it has positions for {peer.limit:,} tokens", tokens=tokens)
        return False
    if not has_room(peer.bytes_of(tokens), setting.device):
        gigabytes = peer.bytes_of(tokens) / 1e9
        report.skip(peer.name, f"it needs about {gigabytes:.1f} GB, more than half of what is free", tokens=tokens)
        return False
    return budget.allows(peer.name, tokens, peer.power, tokens=tokens)


if __name__ == "__main__":
    from .__main__ import main

    sys.argv[1:1] = ["--only", "reading"]  # there, since it is kept as the command that makes the figures again
    main()
