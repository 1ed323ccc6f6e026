"""A head that is one matrix: the losses of a chunk in one place in memory, their gradients beside them.

Most decoders end so: logits = h W^T (+ b), and nothing after. Then the softmax can be taken where the logits are, and what it
leaves there, p minus one at the target, is their gradient. Nothing is kept for autograd but what it asks for.

PyTorch's `linear_cross_entropy` does the same, and as fast; but it does not say which predictions are right
(docs/decisions/0027-the-loss-through-a-plain-head.md).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from .backbones.base import head_alone

_PRECISE = (torch.float32, torch.float64)


class PlainHead:
    """Losses through a matrix, a chunk of positions at a time.

    Args:
        weight: `[V, D]`.
        bias: `[V]`, or None.
        size: Positions of the largest chunk.
    """

    def __init__(self, weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None, size: int) -> None:
        self.weight, self.bias, self.size = weight, bias, size
        self._logits = weight.new_empty(0)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Of a chunk, in the place of those of the chunk before."""
        if not self._logits.numel():
            self._logits = self.weight.new_empty(self.size, len(self.weight))
        logits = self._logits[: len(hidden)]
        torch.mm(hidden, self.weight.T, out=logits)
        return logits if self.bias is None else logits.add_(self.bias)

    def losses(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], with_gradient: bool
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"], Float[Tensor, "N D"] | None]:
        """The losses of a chunk, which predictions are right, and if wanted the gradient of each loss for its hidden state."""
        logits = self.logits(hidden)
        highest, found = logits.max(1)
        logits.sub_(highest[:, None])
        of_targets = logits.gather(1, targets[:, None])[:, 0]
        sums = logits.exp_().sum(1)
        losses, is_right = sums.log() - of_targets, found == targets
        if not with_gradient:
            return losses, is_right, None
        logits.div_(sums[:, None])
        logits.scatter_add_(1, targets[:, None], logits.new_full((len(targets), 1), -1.0))
        return losses, is_right, logits @ self.weight


class TrainedPlainLosses(torch.autograd.Function):
    """The losses through a matrix that is trained: logits are computed again for the gradients, so that none of its size waits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """`hidden` `[N, D]`, `weight` `[V, D]`, `bias` `[V]`, `targets` `[N]`, positions of a chunk."""
        head = PlainHead(weight, bias, size)
        parts = [head.losses(*part, False)[:2] for part in zip(hidden.split(size), targets.split(size), strict=True)]
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.size = size
        losses, is_right = (torch.cat(each) for each in zip(*parts, strict=True))
        ctx.mark_non_differentiable(is_right)
        return losses, is_right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of a chunk's logits: (p - one at the target) times the gradient of each loss."""
        hidden, weight, bias, targets = ctx.saved_tensors
        head = PlainHead(weight, bias, ctx.size)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(targets), ctx.size):
            part = slice(start, start + ctx.size)
            logits, factors = head.logits(hidden[part]), outer[0][part]
            logits.sub_(logits.amax(1, keepdim=True)).exp_()
            logits.mul_((factors / logits.sum(1))[:, None])
            logits.scatter_add_(1, targets[part, None], -factors[:, None])
            if of_hidden is not None:
                torch.mm(logits, weight, out=of_hidden[part])
            if of_weight is not None:
                of_weight.addmm_(logits.T, hidden[part])
            if of_bias is not None:
                of_bias += logits.sum(0)
        return of_hidden, of_weight, of_bias, None, None


def plain_head(model: PreTrainedModel, hidden: Float[Tensor, "N D"], size: int) -> PlainHead | None:
    """The head of a model, if it is one matrix in single or double precision whose product is the logits; else None.

    The model's own `forward` is asked: it runs with something in the head's place that returns known numbers, and they have to be
    its logits, unchanged (soft caps, scales), after the hidden states were given to it, unchanged (layers before it).

    Args:
        model: The model.
        hidden: Last hidden states.
        size: Positions of the largest chunk.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    name = next((name for name, module in model.named_children() if module is head), None)
    if name is None or not isinstance(head, nn.Linear) or not _is_untouched(head):
        return None
    tensors = [hidden, *head.parameters()]
    is_plain = all(t.dtype == hidden.dtype and not t.is_meta and not isinstance(t, DTensor) for t in tensors)
    if not is_plain or hidden.dtype not in _PRECISE or torch.is_autocast_enabled(hidden.device.type):
        return None
    return PlainHead(head.weight, head.bias, size) if _leaves_alone(model, name, head) else None


def _is_untouched(head: nn.Linear) -> bool:
    """Whether it is a linear module with nothing around it: adapters, hooks, packed weights, another forward."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
    return type(head) is nn.Linear and "forward" not in vars(head) and not any(hooks)


class _Known(nn.Module):
    """Stands in for a head: keeps what it is given, returns known logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.given = logits, list[Tensor]()

    def forward(self, hidden: Tensor) -> Tensor:
        self.given.append(hidden)
        return self.logits


def _leaves_alone(model: PreTrainedModel, name: str, head: nn.Linear) -> bool:
    # Both signs, from small to far past any cap.
    like = head.weight.detach()
    width, vocab = head.in_features, head.out_features
    logits = torch.logspace(-3, 6, vocab, device=like.device, dtype=like.dtype)
    logits[::2] *= -1
    hidden = torch.linspace(-3, 3, width, device=like.device, dtype=like.dtype)
    known = _Known(logits[None, None])
    with torch.no_grad():
        found = head_alone(model, **{name: known})(inputs_embeds=hidden[None, None]).logits
    if len(known.given) != 1 or found.dtype != like.dtype:
        return False
    given = known.given[0]
    return torch.equal(found.flatten(), logits) and torch.equal(given.flatten(), hidden)
