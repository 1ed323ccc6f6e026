"""Cross-entropy through a model's own head, a few positions at a time: logits are never whole in memory.

With a vocabulary of 50,000, the logits of 1,024 positions take 200 MB in float32, their gradient as much again, and what
lies between more. Here a chunk of positions goes through the head at a time; in training its logits are thrown away and
computed again when its gradients are wanted, so that one chunk of them exists at any moment. Value and gradients are those
of the plain loss, summed in another order. Where all positions fit into one chunk, it is the plain loss.

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .backbones.base import Backbone

CPU_LOGITS = 2**24  # 64 MiB in float32
GPU_LOGITS = 2**27


def positions_at_a_time(view: Backbone, logits_at_a_time: int | None = None) -> int:
    """How many positions go through the head at once.

    Args:
        view: The model.
        logits_at_a_time: Numbers; None: what suits the model's device.
    """
    limit = logits_at_a_time or (CPU_LOGITS if view.embedding.weight.device.type == "cpu" else GPU_LOGITS)
    return max(1, limit // view.vocab_size)


def at_least_float32(logits: Tensor) -> Tensor:
    """In float32, or in float64 where they are that already: a loss is not taken in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def head_losses(
    view: Backbone,
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    logits_at_a_time: int | None = None,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """The cross-entropies of some predictions, and which of them are right.

    Args:
        view: The model, whose head is run with all that belongs to it (caps, scales).
        hidden: `[N, D]` last hidden states.
        targets: `[N]` the token that each is to predict.
        logits_at_a_time: How many logits may be in memory at once; None: what suits the device.

    Returns:
        For each prediction `-log p(target)`, and whether its likeliest token is the target.
    """
    size = positions_at_a_time(view, logits_at_a_time)
    if len(targets) <= size:
        return _of_chunk(view, hidden, targets)
    losses: list[Tensor] = []
    right: list[Tensor] = []
    for some, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            found = checkpoint(_of_chunk, view, some, wanted, use_reentrant=False)
            loss, is_right = cast(tuple[Tensor, Tensor], found)
        else:
            loss, is_right = _of_chunk(view, some, wanted)
        losses.append(loss)
        right.append(is_right)
    return torch.cat(losses), torch.cat(right)


def _of_chunk(view: Backbone, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = at_least_float32(view.head(hidden))
    return cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1) == targets
