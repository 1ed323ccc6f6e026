"""What of the last hidden state is carried to the next segment."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HiddenCarry(nn.Module):
    """The papers' form: the hidden state as it is."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape."""
        return hidden


class SignCarry(nn.Module):
    """One bit a number, +1 or -1: a memory that a segment says nothing about comes back exactly as it was.

    Small errors are undone at every segment instead of adding up over thousands. The gradient is that of the identity
    (straight-through estimator, Bengio et al., arXiv:1308.3432). Needs training for it, or at least a backbone whose
    hidden state is about 1 in size.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape."""
        return _Sign.apply(hidden)  # pyright: ignore[reportReturnType]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, hidden: Tensor) -> Tensor:
        # What is not finite must be seen to be so.
        return torch.where(hidden < 0, -torch.ones_like(hidden), torch.ones_like(hidden)) + 0 * hidden

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


CARRIES: dict[str, type[nn.Module]] = {"hidden": HiddenCarry, "sign": SignCarry}
