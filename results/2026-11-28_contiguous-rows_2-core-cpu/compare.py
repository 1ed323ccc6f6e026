"""Folding segments with the write positions of the last layer copied together, against leaving them a view, by turns in a drawn order.

python results/2026-11-28_contiguous-rows_2-core-cpu/compare.py BACKBONE OUT.json

BACKBONE: an encoder, such as sentence-transformers/all-MiniLM-L6-v2.
"""

import json
import random
import sys
import time
from statistics import median

import torch
from torch import Tensor

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.backbones import last_layer
from recurrent_memory.evaluation.provenance import machine
from recurrent_memory.segments import Segment

ROUNDS, STEPS, SEED = 20, 4, 0
MEMORY = MemoryConfig(num_memory_tokens=10, segment_length=64)
taken = last_layer.take


class View(Tensor):
    """What stays a view when it is asked to be contiguous."""

    def contiguous(self, *_: object, **__: object) -> Tensor:
        """As it was without the copy."""
        return self.as_subclass(Tensor)


def left_a_view(hidden: Tensor, positions: object) -> Tensor:
    """`take` for hidden states `[B, R, D]`; of queries, with heads, nothing changes."""
    some = taken(hidden, positions)
    return some.as_subclass(View) if some.ndim == 3 else some


def interval(ratios: list[float], rng: random.Random) -> tuple[float, float]:
    """95 %, of a median, by bootstrap over rounds."""
    drawn = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return drawn[50], drawn[1949]


@torch.no_grad()
def main() -> None:
    """Measure, print, and write what OUT.json names."""
    torch.set_num_threads(1)
    begun, rng, lines = machine(), random.Random(SEED), []
    torch.manual_seed(SEED)
    model = RecurrentMemoryModel.from_backbone(
        sys.argv[1], MEMORY, task="sequence-classification", dtype=torch.bfloat16
    ).eval()
    model.requires_grad_(False)  # as with an adapter: of weights that are trained torch makes no copy
    for rows in (20, 50):
        segment = Segment.full(torch.randint(1000, 20_000, (rows, MEMORY.segment_length)))
        start = model.initial_state(rows)
        seconds, found = {"a view": [], "copied": []}, {}
        for index in range(ROUNDS + 1):
            for way in rng.sample(list(seconds), 2):
                last_layer.take = left_a_view if way == "a view" else taken
                started, state = time.perf_counter(), start
                for _ in range(STEPS):
                    state = model.step(segment, state, return_hidden=False)[1]
                if index:  # the first is to get warm
                    seconds[way].append(time.perf_counter() - started)
                found[way] = state.tensors["memory"]
        view, copied = seconds.values()
        ratios = [slow / fast for slow, fast in zip(view, copied, strict=True)]
        low, high = interval(ratios, rng)
        difference = (found["a view"] - found["copied"]).float().abs().max().item()
        speed = {way: rows * STEPS / median(values) for way, values in seconds.items()}
        lines.append({"rows": rows, "segments_per_s": speed, "times": median(ratios), "low": low, "high": high})
        lines[-1] |= {"largest_difference": difference, "seconds": seconds}
        print({key: value for key, value in lines[-1].items() if key != "seconds"}, flush=True)
    settings = {
        "rounds": ROUNDS,
        "steps": STEPS,
        "seed": SEED,
        "threads": 1,
        "dtype": "bfloat16",
        "memory": MEMORY.to_dict(),
    }
    with open(sys.argv[2], "w", encoding="utf-8") as stream:
        json.dump({**settings, **begun, "backbone": sys.argv[1], "lines": lines}, stream, indent=1)


if __name__ == "__main__":
    main()
