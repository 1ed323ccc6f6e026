"""Noise on the memory between segments, in training: a memory that is put right again at every segment lasts.

A model trained on a few segments makes no mistake there long before its memory is a fixed point, and then learns nothing more: what
drifts over a hundred segments has no gradient within six. With noise on what is carried, six segments ask for what hundreds
do otherwise: that each segment reads a memory that is a little off, and writes the right one.

Noise on hidden states as a regularizer: Jim, Giles, Horne: An Analysis of Noise in Recurrent Neural Networks, IEEE
Transactions on Neural Networks 7(6), 1996; Dieng, Ranganath, Altosaar, Blei: Noisin, arXiv:1805.01500.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..config import MemoryConfig
from ..errors import ConfigError
from ..head_loss import at_least_float32


@dataclass(frozen=True, slots=True)
class Disturbance:
    """`M + σ s ε`: s is the standard deviation of the numbers of a memory token, ε standard normal, new at every call.

    Args:
        noise: σ.
        num_written: The memory tokens that are disturbed, the first ones; the others are tokens of the text.
    """

    noise: float
    num_written: int

    @classmethod
    def of(cls, config: MemoryConfig, noise: float) -> Self | None:
        """That of a memory; None where there is nothing to disturb.

        Raises:
            ConfigError: if the memory is not of tokens.
        """
        if not noise or not config.num_written:
            return None
        if config.kind != "tokens":
            raise ConfigError(f"memory_noise={noise} is of kind='tokens' only; leave it out of kind={config.kind!r}")
        return cls(noise, config.num_written)

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The memory, `[B, M, D]`, disturbed; gradients go through as if it were not."""
        memory = tensors["memory"].clone()
        written = memory[:, : self.num_written]
        spread = at_least_float32(written.detach()).std(-1, keepdim=True, correction=0)
        written += self.noise * spread * torch.randn_like(spread.expand_as(written))
        return {**tensors, "memory": memory}
