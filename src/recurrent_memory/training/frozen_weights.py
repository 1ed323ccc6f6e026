"""Frozen weights under autocast: brought to half precision once, not at every use.

Autocast keeps what it has cast for weights that are trained, not for frozen ones: those of a backbone under LoRA are cast
anew in every segment, forward, and again where it is recomputed. Here each has a copy in half precision, for as long as a
training runs. The numbers are the same to the last bit; the weights themselves stay as they are, so that checkpoints and
fingerprints do not change. It costs the memory of the copy, half of that of the weights in float32.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from ..model import RecurrentMemoryModel
from .sharding import is_sharded


@contextmanager
def cast_once(model: RecurrentMemoryModel) -> Generator[None]:
    """Within it, the frozen linear layers of a model keep their weights in what autocast computes in.

    Layers whose weights are split over processes or packed into 4 bits are left as they are, and those whose forward pass
    somebody has replaced already (Accelerate, where a model is spread over devices).
    """
    linears = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    layers = [] if is_sharded(model) else [layer for layer in linears if _is_frozen(layer)]
    for layer in layers:
        layer.forward = _Cast(layer)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_frozen(layer: nn.Module) -> bool:
    return "forward" not in vars(layer) and not any(parameter.requires_grad for parameter in layer.parameters())


class _Cast:
    """The forward pass of a layer."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        self.layer, self.plain = layer, layer.forward
        self.made_of: tuple[object, ...] = ()
        self.weight: Tensor = torch.empty(0)
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device) or self.layer.weight.dtype != torch.float32:
            return self.plain(x)
        self._look(torch.get_autocast_dtype(device))
        if isinstance(self.layer, nn.Linear):
            return linear(x, self.weight, self.bias)
        assert self.bias is not None  # a Conv1D has one
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).unflatten(0, x.shape[:-1])

    def _look(self, dtype: torch.dtype) -> None:
        """Make the copies anew if the weights are others than before: another stage begins with the best ones of the last."""
        kept = [parameter for parameter in (self.layer.weight, self.layer.bias) if parameter is not None]
        made_of = (dtype, *((tensor.data_ptr(), tensor._version, tensor.device) for tensor in kept))
        if made_of != self.made_of:
            self.weight, self.bias = self.layer.weight.detach().to(dtype), None
            if self.layer.bias is not None:
                self.bias = self.layer.bias.detach().to(dtype)
            self.made_of = made_of
