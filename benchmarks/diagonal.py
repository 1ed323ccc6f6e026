"""The diagonal schedule beside one segment after the other: the same model, the same text, one run.

    python -m benchmarks.diagonal [--layers 4 --layers 12] [--width 256] [--segment-length 32 --segment-length 256] [--json]

By the size of the model and the length of a segment. Llama layers with random weights: what is computed does not change
with them. Runs alternate after a warm-up; medians are compared, and the final memories must agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from recurrent_memory import MemoryConfig, MemoryState, RecurrentMemoryModel
from recurrent_memory.evaluation.provenance import machine

from .models import remember

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def build(kind: str, layers: int, width: int, segment_length: int, device: str, dtype: torch.dtype) -> Any:
    """A model of random weights; heads of 64, feed-forward layers of 8/3 the width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=segment_length + 64,
        bos_token_id=None,
        eos_token_id=None,
    )
    memory = MemoryConfig(num_memory_tokens=16, segment_length=segment_length, kind=kind)
    model = RecurrentMemoryModel.from_backbone(LlamaForCausalLM(config), memory)
    if kind == "associative":
        remember(model)
    return model.to(device, dtype).eval()


def timed(model: RecurrentMemoryModel, ids: Tensor, schedule: str) -> tuple[float, MemoryState]:
    """Seconds of a reading, and the state after it."""
    if ids.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    state = model.read(ids, schedule=schedule)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, state


def compare(model: RecurrentMemoryModel, batch: int, segments: int, rounds: int) -> dict[str, Any]:
    """One model and one text, by both schedules."""
    length = model.memory_config.segment_length
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.view.vocab_size, (batch, segments * length + 1), generator=generator).to(model.device)
    seconds: dict[str, list[float]] = {"sequential": [], "diagonal": []}
    difference = 0.0
    for schedule in seconds:
        timed(model, ids[:, : 2 * length + 1], schedule)
    for _ in range(rounds):
        states: list[MemoryState] = []
        for schedule, took in seconds.items():
            elapsed, state = timed(model, ids, schedule)
            took.append(elapsed)
            states.append(state)
        for name, tensor in states[0].tensors.items():
            off = float((states[1].tensors[name] - tensor).abs().max() / tensor.abs().max())
            difference = max(difference, off)
    if not difference <= TOLERANCE[model.dtype]:
        raise SystemExit(f"the memories differ by {difference:.2g}, more than rounding; no speed is worth that")
    medians = {schedule: statistics.median(took) for schedule, took in seconds.items()}
    return {
        "kind": model.memory_config.kind,
        "layers": len(model.view.layers()),
        "width": model.view.layer_width,
        "segment_length": length,
        "segments": segments,
        "batch": batch,
        "rounds": rounds,
        "sequential_seconds": [round(s, 4) for s in seconds["sequential"]],
        "diagonal_seconds": [round(s, 4) for s in seconds["diagonal"]],
        "diagonal_tokens_per_s": round(batch * segments * length / medians["diagonal"], 1),
        "speedup_over_sequential": round(medians["sequential"] / medians["diagonal"], 3),
        "memory_relative_difference": difference,
    }


def provenance(device: str) -> dict[str, Any]:
    """What is needed to make the figures again."""
    return {
        "command": " ".join(["python", "-m", "benchmarks.diagonal", *sys.argv[1:]]),
        **machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=["associative", "per-layer"], help="more than once for both")
    parser.add_argument("--layers", action="append", type=int, help="more than once for several")
    parser.add_argument("--width", action="append", type=int, help="more than once for several")
    parser.add_argument("--segment-length", action="append", type=int, help="more than once for several")
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    results: list[dict[str, Any]] = []
    for kind, layers, width, length in itertools.product(
        arguments.kind or ["associative", "per-layer"],
        arguments.layers or [4, 12],
        arguments.width or [256],
        arguments.segment_length or [32, 256],
    ):
        model = build(kind, layers, width, length, arguments.device, dtype)
        results.append(compare(model, arguments.batch, arguments.segments, arguments.rounds))
    report = {**provenance(arguments.device), "dtype": arguments.dtype}
    if arguments.json:
        print(json.dumps({**report, "results": results}))
        return
    for r in results:
        print(
            f"{r['kind']}, {r['layers']} layers of {r['width']}, segments of {r['segment_length']}: "
            f"{r['speedup_over_sequential']}× of one segment after the other, {r['diagonal_tokens_per_s']:,} tokens/s, "
            f"memories differ by {r['memory_relative_difference']:.1e}"
        )


if __name__ == "__main__":
    main()
