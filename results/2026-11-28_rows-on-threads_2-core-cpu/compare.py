"""Rows of a batch on threads of their own against all rows at once, with the shipped model: tokens/s, by turns in a drawn order.

python results/2026-11-28_rows-on-threads_2-core-cpu/compare.py OUT.json
"""

import json
import random
import sys
import time
from statistics import median

import torch

from recurrent_memory import reading
from recurrent_memory.evaluation.provenance import machine
from recurrent_memory.inference.row_threads import fold_in_pieces
from recurrent_memory.models import load_model

ROUNDS, SEED = 30, 0
WAYS = {
    "all rows at once": lambda fold, batch, positions, threads=None: fold(slice(0, batch)),
    "a thread has rows of its own": fold_in_pieces,
    "the same pieces, one after the other": lambda fold, batch, positions, threads=None: fold_in_pieces(
        fold, batch, positions, 1
    ),
}


def interval(ratios: list[float], rng: random.Random) -> tuple[float, float]:
    """95 %, of a median, by bootstrap over rounds."""
    drawn = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return drawn[50], drawn[1949]


def main() -> None:
    """Measure, print, and write what OUT.json names."""
    begun, rng, lines = machine(), random.Random(SEED), []
    model, _ = load_model(None, "cpu", "float32")
    for batch, tokens in ((8, 2048), (16, 2048), (16, 4096), (64, 1024)):
        ids = torch.randint(model.view.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(SEED))
        speeds, memories = {name: [] for name in WAYS}, {}
        for index in range(ROUNDS + 1):
            for name in rng.sample(list(WAYS), len(WAYS)):
                reading.fold_in_pieces = WAYS[name]
                started = time.perf_counter()
                memories[name] = model.read(ids).memory
                if index:  # the first is to get warm
                    speeds[name].append(batch * tokens / (time.perf_counter() - started))
        plain = "all rows at once"
        for name, each in speeds.items():
            ratios = [ours / theirs for ours, theirs in zip(each, speeds[plain], strict=True)]
            off = float((memories[name] - memories[plain]).abs().max())
            lines.append(
                {"way": name, "rows": batch, "tokens": tokens, "tokens_per_s": median(each), "times": median(ratios)}
                | dict(zip(("low", "high"), interval(ratios, rng), strict=True))
                | {"memory_off": off, "speeds": each}
            )
            print(
                *[
                    lines[-1][key]
                    for key in ("rows", "tokens", "way", "tokens_per_s", "times", "low", "high", "memory_off")
                ]
            )
    settings = {"rounds": ROUNDS, "seed": SEED, "threads": torch.get_num_threads(), "fingerprint": model.fingerprint}
    with open(sys.argv[1], "w", encoding="utf-8") as stream:
        json.dump({**settings, **begun, "lines": lines}, stream, indent=1)


if __name__ == "__main__":
    main()
