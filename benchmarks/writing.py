"""One long text written: time of a token and memory against the tokens written before, beside full attention.

    python -m benchmarks --only writing [--model small|135m|smollm2|shipped|FOLDER]

Greedily, from a text of one segment on, by what `rmt generate` calls. A figure is of as many tokens as a segment has, so that
each has its folding in it; medians with their intervals, over those of a stretch: its last token is what the table names. Full
attention keeps the keys and values of all that it has written. One after the other, not by turns: each writes once, and memory
is the process's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from transformers import DynamicCache, GenerationConfig

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.inference.writing import write_tokens

from .common import Budget, Peak, Report, Setting, median_interval, peak_memory, synchronize
from .generation import FULL, OURS, can_attend
from .models import load_for
from .reading import text_of

TOKENS = 20_000
HALVINGS = 4


def run(setting: Setting, peak: Peak) -> Report:
    """Milliseconds of a token, and memory over what the process had before, against the tokens written."""
    report = Report("writing", "tokens_written", ("ms_per_token", "peak_memory_mb"))
    model = load_for(setting)
    length = model.memory_config.segment_length
    segments = max(2, -(-min(TOKENS, setting.max_tokens) // length))
    ends = sorted({segments >> power for power in range(HALVINGS + 1)} - {0})
    start = text_of(model.view.vocab_size, length, setting)
    config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    write_tokens(model, model.read(start), lambda _: None, config, max_new_tokens=length)  # to warm up
    meter = Meter(OURS, ends, length, setting, report, 0)
    write_tokens(model, model.read(start), meter.take, config, max_new_tokens=segments * length)
    if can_attend(model, (segments + 1) * length, setting, report, tokens_written=segments * length):
        attend(model, start, length, lambda _: None)
        attend(model, start, segments * length, Meter(FULL, ends, length, setting, report, 1).take)
    return report


@torch.no_grad()
def attend(model: RecurrentMemoryModel, start: torch.Tensor, count: int, take: Callable[[int], None]) -> None:
    """So many tokens by the backbone alone, with all keys and values; fewer where `take` raises `EnoughError`."""
    cache = DynamicCache(config=model.backbone.config)
    ids = start
    try:
        for _ in range(count):
            output = model.backbone(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1:].argmax(-1)
            take(int(ids))
    except EnoughError:
        return


class EnoughError(Exception):
    """The next stretch would take too long."""


class Meter:
    """Takes tokens, and makes a row of each stretch of them; not timed is what it does itself.

    Args:
        contender: Who writes.
        ends: Of the stretches, in segments.
        length: Tokens of a segment.
        setting: What is measured.
        report: Gets the rows, and why there are no more.
        power: By how much the time of a token grows with the tokens before it.
    """

    def __init__(
        self, contender: str, ends: Sequence[int], length: int, setting: Setting, report: Report, power: float
    ) -> None:
        self._contender, self._ends, self._length, self._power = contender, list(ends), length, power
        self._setting, self._report = setting, report
        self._budget = Budget(setting, report)
        self._made, self._seconds = 0, list[float]()
        # Each is of everything from the start to where it is closed: the end of its stretch.
        self._memory = [ExitStack() for _ in ends]
        self._used = [stack.enter_context(peak_memory(setting.device)) for stack in self._memory]
        self._since = time.perf_counter()

    def take(self, _: int) -> None:
        """One more token.

        Raises:
            EnoughError: if the next stretch would be over the budget.
        """
        self._made += 1
        if self._made % self._length:
            return
        synchronize(self._setting.device)
        self._seconds.append(time.perf_counter() - self._since)
        if self._made == self._ends[0] * self._length:
            self._end()
        self._since = time.perf_counter()

    def _end(self) -> None:
        self._memory.pop(0).close()
        found = median_interval([1e3 * seconds / self._length for seconds in self._seconds])
        row = {"contender": self._contender, "tokens_written": self._made, "ms_per_token": found["median"]}
        row |= {"low_ms_per_token": found["low"], "high_ms_per_token": found["high"], "confidence": found["confidence"]}
        self._report.rows.append({**row, "segments": len(self._seconds), "peak_memory_mb": self._used.pop(0)["mb"]})
        print(
            f"  {self._contender:<40} {self._made:>8,} tokens written {row['ms_per_token']:>8.2f} ms a token",
            file=sys.stderr,
            flush=True,
        )
        del self._ends[0]
        self._budget.took(self._contender, self._made, self._seconds[-1])
        self._seconds = []
        if self._ends:
            tokens = self._ends[0] * self._length
            if not self._budget.allows(self._contender, tokens, self._power, tokens_written=tokens):
                raise EnoughError
