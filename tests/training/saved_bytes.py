"""How much autograd keeps for the backward pass, at its peak."""

from __future__ import annotations

import torch
from torch import Tensor


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of tensors that graphs keep, while they do. Parameters and inputs kept anyway count as well."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        super().__init__(self._pack, self._unpack)

    def __enter__(self) -> SavedBytes:
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _Kept:
        return _Kept(self, tensor)

    @staticmethod
    def _unpack(kept: _Kept) -> Tensor:
        return kept.tensor


class _Kept:
    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        # Without its history: a node that saves its own output would keep itself alive through it.
        self.counter, self.tensor = counter, tensor.detach()
        self.num_bytes = tensor.numel() * tensor.element_size()
        counter.now += self.num_bytes
        counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.num_bytes
