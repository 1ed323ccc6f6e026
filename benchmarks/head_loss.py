"""The loss through a plain head: ours, PyTorch's fused `linear_cross_entropy`, and the plain loss with all logits in memory.

    OMP_NUM_THREADS=1 python -m benchmarks.head_loss [--positions 1024] [--width 576] [--vocab 49152] [--rounds 9] [--autocast]

By turns in one process: forward alone, and forward and backward with the head trained and frozen. "Chunks, run again" is what any
head had before: logits in chunks, recomputed for their gradients; "ours, of any head" is what heads with caps or layers have,
and "ours" what a single matrix has. All of these say which predictions are right as well. PyTorch's cannot; one contender asks
in a product of its own. PyTorch's `sum` takes gradients as it goes forward, its `none` computes logits again. Each row has how
far its losses and gradients are from those of the plain loss in float64.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from recurrent_memory import head_loss
from recurrent_memory.backbones.decoder import DecoderBackbone
from recurrent_memory.evaluation.provenance import machine
from recurrent_memory.head_loss import at_least_float32, head_losses, positions_at_a_time

from .common import SEED, Contender, add_ratios, by_turns, peak_memory, timing

Loss = Callable[[Tensor, Tensor], Tensor]
PEER = "chunks, run again"
MODES = ("forward", "trained", "frozen")


def main() -> None:
    """Print a line a contender, or one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, default=1024, help="predictions")
    parser.add_argument("--width", type=int, default=576, help="D")
    parser.add_argument("--vocab", type=int, default=49_152, help="V")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--autocast", action="store_true", help="forward passes in bfloat16")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", action="store_true")
    found = parser.parse_args()
    about = {"command": " ".join(["python", "-m", "benchmarks.head_loss", *sys.argv[1:]]), **machine()}
    torch.manual_seed(found.seed)
    view = view_of(found.width, found.vocab, getattr(torch, found.dtype))
    hidden = torch.randn(found.positions, found.width, dtype=view.embedding.weight.dtype)
    targets = torch.randint(0, found.vocab, (found.positions,))
    with torch.autocast("cpu", torch.bfloat16, enabled=found.autocast):
        rows = [row for mode in MODES for row in compared(view, hidden, targets, mode, found.rounds)]
    if found.json:
        print(json.dumps({"benchmark": "head_loss", **about, "threads": torch.get_num_threads(), "rows": rows}))
        return
    for row in rows:
        print(
            f"{row['mode']:<8} {row['contender']:<30} {row['median_s']:.3f} s ({row['low_s']:.3f}-{row['high_s']:.3f}) "
            f"{row['times_peer']:.2f} ({row['low_times_peer']:.2f}-{row['high_times_peer']:.2f}) times the first, "
            f"{row['peak_memory_mb'] or 0:.0f} MB, off by {row['loss_off']:.1e} and {row['gradient_off']:.1e}"
        )


def view_of(width: int, vocab: int, dtype: torch.dtype) -> DecoderBackbone:
    """A Llama with a plain, tied head and hardly any body."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    return DecoderBackbone(LlamaForCausalLM(config).to(dtype))  # pyright: ignore[reportArgumentType]


def losses_of(view: DecoderBackbone) -> dict[str, Loss]:
    """Each way to the sum of the losses."""
    size = positions_at_a_time(view)
    ways: dict[str, Loss] = {
        PEER: partial(run_again, view, size),
        "ours": lambda hidden, targets: head_losses(view, hidden, targets)[0].sum(),
        "ours, of any head": partial(_of_any_head, view),
        "plain, all logits": lambda hidden, targets: cross_entropy(
            at_least_float32(view.head(hidden)), targets, reduction="sum"
        ),
    }
    fused = cast(Any, getattr(functional, "linear_cross_entropy", None))
    if fused is None:
        print(f"PyTorch {torch.__version__} has no linear_cross_entropy", file=sys.stderr)
        return ways
    options = cast(Any, torch.nn).LinearCrossEntropyOptions
    for reduction in ("none", "sum"):
        for name, chosen in {"as ours": options(batch_chunk_size=size), "its own": options()}.items():
            ways[f"fused {reduction}, chunks {name}"] = partial(_fused, fused, view, reduction, chosen)
    alone = ways["fused sum, chunks as ours"]
    ways["fused sum, and which are right"] = lambda hidden, targets: (
        which_are_right(view, size, hidden, targets),
        alone(hidden, targets),
    )[1]
    return ways


def run_again(view: DecoderBackbone, size: int, hidden: Tensor, targets: Tensor) -> Tensor:
    """Chunks of logits that are computed again for their gradients."""

    def of_chunk(some: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = at_least_float32(view.head(some))
        return cross_entropy(logits, wanted, reduction="none"), logits.detach().argmax(-1) == wanted

    losses: list[Tensor] = []
    for some, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        found = (
            checkpoint(of_chunk, some, wanted, use_reentrant=False)
            if torch.is_grad_enabled()
            else of_chunk(some, wanted)
        )
        losses.append(cast(tuple[Tensor, Tensor], found)[0])
    return torch.cat(losses).sum()


@torch.no_grad()
def which_are_right(view: DecoderBackbone, size: int, hidden: Tensor, targets: Tensor) -> Tensor:
    """Whose likeliest token is the target."""
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([view.head(some).argmax(-1) == wanted for some, wanted in parts])


def _of_any_head(view: DecoderBackbone, hidden: Tensor, targets: Tensor) -> Tensor:
    with patch.object(head_loss, "plain_head", lambda *_: None):
        return head_losses(view, hidden, targets)[0].sum()


def _fused(fused: Any, view: DecoderBackbone, reduction: str, options: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    weight = view.embedding.weight
    if torch.is_autocast_enabled("cpu"):  # it does not look at autocast
        hidden, weight = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
    return fused(hidden, weight, targets, reduction=reduction, options=options).sum()


def compared(view: DecoderBackbone, hidden: Tensor, targets: Tensor, mode: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each way, forward alone, or with backward and the head trained or frozen."""
    weight = view.embedding.weight
    weight.requires_grad_(mode == "trained")
    hidden = hidden.detach().requires_grad_(mode != "forward")
    truth = _truth(hidden, weight, targets, mode)

    def run(loss: Loss) -> Tensor:
        with torch.set_grad_enabled(mode != "forward"):
            value = loss(hidden, targets)
            if mode != "forward":
                value.backward()
        return value.detach()

    def clear() -> None:
        hidden.grad = weight.grad = None

    ways = losses_of(view)
    seconds = by_turns([Contender(name, partial(run, way), clear) for name, way in ways.items()], rounds, "cpu")
    rows: list[dict[str, Any]] = []
    for name, way in ways.items():
        with peak_memory("cpu") as peak:
            value = run(way)
        got = [value, *(grad for grad in (hidden.grad, weight.grad) if grad is not None)]
        off = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, truth, strict=True)]
        clear()
        row = {"contender": name, "mode": mode, **timing(seconds[name], len(targets)), "peak_memory_mb": peak["mb"]}
        rows.append({**row, "loss_off": off[0], "gradient_off": max(off[1:], default=0.0)})
    add_ratios(rows, PEER)
    return rows


def _truth(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> list[Tensor]:
    """The loss in float64, and its gradients."""
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in (hidden, weight)]
    with torch.autocast("cpu", enabled=False):
        loss = cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    wanted = [tensor for tensor in exact if tensor.requires_grad]
    return [loss.detach(), *(torch.autograd.grad(loss, wanted) if mode != "forward" else ())]


if __name__ == "__main__":
    main()
