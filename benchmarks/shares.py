"""What the time of reading goes into: matrix products, attention, all else, by PyTorch's profiler.

    python -m benchmarks.shares [--model smollm2] [--segments 2] [--threads 2] [--json]

The shares are of each operator's own time on the processor; the profiler's own cost is in them.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch.profiler import ProfilerActivity, profile

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.evaluation.provenance import machine

from .common import SEED, Setting
from .models import load
from .reading import text_of

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm")
ATTENTION = "scaled_dot_product"


def shares(model: RecurrentMemoryModel, segments: int) -> dict[str, float]:
    """The share of matrix products, of attention and of all else, after one reading that is not measured.

    Args:
        model: In evaluation mode, on a CPU.
        segments: Of one text, how many are read.
    """
    tokens = segments * model.memory_config.segment_length
    text = text_of(model.view.vocab_size, tokens, Setting(max_tokens=tokens))
    model.read(text)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model.read(text)
    took = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    products = sum(time for key, time in took.items() if key in PRODUCTS)
    attention = sum(time for key, time in took.items() if ATTENTION in key)
    every = sum(took.values())
    return {
        "matrix products": products / every,
        "attention": attention / every,
        "all else": 1 - (products + attention) / every,
    }


def main() -> None:
    """Print the shares, with what is needed to find them again."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shares", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="small, 135m, smollm2, shipped, or a model folder")
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--threads", type=int, help="by default as PyTorch chooses")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.segments < 1:
        parser.error(f"--segments {arguments.segments}: must be at least 1")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found = shares(load(arguments.model, seed=SEED), arguments.segments)
    if arguments.json:
        print(json.dumps({"shares": found, "threads": torch.get_num_threads(), **machine()}))
        return
    for name, share in found.items():
        print(f"{name:<16} {share:.1%}")


if __name__ == "__main__":
    main()
