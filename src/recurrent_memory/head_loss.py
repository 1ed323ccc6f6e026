"""Cross-entropy through a model's own head, a few positions at a time: logits are never whole in memory.

With a vocabulary of 50,000, the logits of 1,024 positions take 200 MB in float32, their gradient as much again, and what
lies between more. Here a chunk of positions goes through the head at a time. Where the head is frozen, the gradient for each
hidden state is taken at once, while the chunk's logits are there; where it is trained, they are thrown away and computed again when
its gradients are wanted. So one chunk of them exists at any moment. Value and gradients are those of the plain loss, summed in
another order. Where all positions fit into one chunk, it is the plain loss. A head that is one matrix has a way of its own
(`plain_head.py`).

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .backbones.base import Backbone, head_alone
from .plain_head import TrainedPlainLosses, plain_head

CPU_LOGITS = 2**24  # 64 MiB in float32
GPU_LOGITS = 2**27
Chunk = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor | None]]


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
    size = -(-len(targets) // -(-len(targets) // size))  # as many in each, so that no last one is left over
    plain = plain_head(view.model, hidden, size)
    trained = [parameter for parameter in head_alone(view.model).parameters() if parameter.requires_grad]
    is_wanted = torch.is_grad_enabled() and (hidden.requires_grad or bool(trained))
    if is_wanted and trained and plain is not None:
        return TrainedPlainLosses.apply(hidden, plain.weight, plain.bias, targets, size)
    if is_wanted and (trained or _is_coarse(hidden)):
        parts = [
            cast(tuple[Tensor, Tensor], checkpoint(_of_chunk, view, *part, use_reentrant=False))
            for part in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        losses, is_right = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(is_right)
    chunk = partial(_with_gradient, view) if plain is None else plain.losses
    return _FrozenLosses.apply(hidden, targets, size, chunk, is_wanted)


def _of_chunk(view: Backbone, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = at_least_float32(view.head(hidden))
    found = logits.detach().max(-1).indices  # the same as argmax, and faster on a CPU
    return cross_entropy(logits, targets, reduction="none"), found == targets


def _is_coarse(hidden: Tensor) -> bool:
    """Whether gradients are in float16, in which those that are not scaled yet may be too small."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) == torch.float16
    return hidden.dtype == torch.float16


def _with_gradient(
    view: Backbone, hidden: Tensor, targets: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a chunk: the losses, which predictions are right, and the gradient of each loss for its hidden state."""
    if not with_gradient:
        return *_of_chunk(view, hidden, targets), None
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        losses, is_right = _of_chunk(view, hidden, targets)
        (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    return losses.detach(), is_right, gradient


class _FrozenLosses(torch.autograd.Function):
    """The losses through a head that is not trained.

    A loss is of its own hidden state alone, so its gradient, of the size of that, is taken while the logits are there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, size: int, chunk: Chunk, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        parts = [chunk(*part, with_gradient) for part in zip(hidden.split(size), targets.split(size), strict=True)]
        losses, is_right, gradients = zip(*parts, strict=True)
        if with_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        right = torch.cat(is_right)
        ctx.mark_non_differentiable(right)
        return torch.cat(losses), right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradients,) = ctx.saved_tensors
        return (outer[0][:, None] * gradients).to(gradients.dtype), None, None, None, None
