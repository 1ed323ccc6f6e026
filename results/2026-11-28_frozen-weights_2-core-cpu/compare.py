"""A LoRA step in bfloat16 whose frozen weights are cast once against one that casts them at every use, by turns in a drawn order.

python results/2026-11-28_frozen-weights_2-core-cpu/compare.py BACKBONE OUT.json

BACKBONE: a decoder, such as HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import json
import random
import sys
import time
from statistics import median

import torch

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.evaluation.provenance import machine
from recurrent_memory.training.bptt import Backpropagation, backpropagate
from recurrent_memory.training.frozen_weights import cast_once
from recurrent_memory.training.trained import choose_trained

ROUNDS, SEED = 12, 0
MEMORY = MemoryConfig(num_memory_tokens=32, recent=16, segment_length=256, carry="gate")
KINDS = ("full", "recompute")


def interval(ratios: list[float], rng: random.Random) -> tuple[float, float]:
    """95 %, of a median, by bootstrap over rounds."""
    drawn = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return drawn[50], drawn[1949]


def main() -> None:
    """Measure, print, and write what OUT.json names."""
    torch.set_num_threads(1)
    begun, rng, lines = machine(), random.Random(SEED), []
    torch.manual_seed(SEED)
    model = RecurrentMemoryModel.from_backbone(sys.argv[1], MEMORY, dtype=torch.float32).train()
    choose_trained(model, "lora")
    ids = torch.randint(100, 40_000, (1, 4 * MEMORY.segment_length))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for kind in KINDS:
        seconds, found = {"cast at every use": [], "cast once": []}, {}
        with cast_once(model):
            kept = {module: vars(module).pop("forward") for module in model.modules() if "forward" in vars(module)}
            for index in range(ROUNDS + 1):
                for way in rng.sample(list(seconds), len(seconds)):
                    for module, forward in kept.items():
                        if way == "cast once":
                            module.forward = forward
                    model.zero_grad()
                    started = time.perf_counter()
                    outcome = backpropagate(
                        model,
                        ids,
                        ids,
                        method=Backpropagation(kind),
                        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
                    )
                    if index:  # the first is to get warm
                        seconds[way].append(time.perf_counter() - started)
                    found[way] = [outcome.loss, *(parameter.grad.clone() for parameter in trained)]
                    for module in kept:
                        vars(module).pop("forward", None)
            for module, forward in kept.items():
                module.forward = forward
        always, once = seconds.values()
        ratios = [slow / fast for slow, fast in zip(always, once, strict=True)]
        same = all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))
        low, high = interval(ratios, rng)
        lines.append(
            {"kind": kind, "always_s": median(always), "once_s": median(once), "times": median(ratios), "low": low}
            | {"high": high, "loss_and_gradients_equal": same, "seconds": seconds}
        )
        print({key: value for key, value in lines[-1].items() if key != "seconds"}, flush=True)
    settings = {"rounds": ROUNDS, "seed": SEED, "threads": 1, "tokens": ids.numel(), "memory": MEMORY.to_dict()}
    with open(sys.argv[2], "w", encoding="utf-8") as stream:
        json.dump({**settings, **begun, "backbone": sys.argv[1], "lines": lines}, stream, indent=1)


if __name__ == "__main__":
    main()
