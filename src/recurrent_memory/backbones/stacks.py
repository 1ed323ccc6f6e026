"""The weights of layers that are built alike, one tensor for all of them, so that several layers can run as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .int8 import is_quantized

_OWN_NUMBER = ("layer_idx", "layer_id", "layer_number", "layer_index")


@dataclass(frozen=True, eq=False)
class Stack:
    """n layers that are built alike. Each layer's parameters are views into the stack: the weights are there once.

    Args:
        numbers: Which of the model's layers they are, in order.
        layers: The layers.
        weights: `[n, …]` by the parameter's name.
        buffers: `[n, …]` by the buffer's name.
    """

    numbers: tuple[int, ...]
    layers: tuple[nn.Module, ...]
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def is_whole(self) -> bool:
        """Whether the parameters still are views: a change of device or dtype gives each its own memory."""
        for index, layer in enumerate(self.layers):
            own = dict(layer.named_parameters())
            if own.keys() != self.weights.keys():
                return False
            for name, parameter in own.items():
                weight = self.weights[name]
                place = weight.data_ptr() + index * weight.stride(0) * weight.element_size()
                if (parameter.data_ptr(), parameter.dtype, parameter.device) != (place, weight.dtype, weight.device):
                    return False
        return True

    def of(self, start: int, stop: int) -> dict[str, Tensor]:
        """The weights and buffers of some of the layers, `[stop - start, …]`. Gradients go to the layers' parameters."""
        needs_gradient = torch.is_grad_enabled()
        found = {name: buffer[start:stop] for name, buffer in self.buffers.items()}
        for name, stacked in self.weights.items():
            weights = stacked[start:stop]
            if needs_gradient:
                own = [layer.get_parameter(name) for layer in self.layers[start:stop]]
                if any(parameter.requires_grad for parameter in own):
                    weights: Any = _OfOwn.apply(weights, *own)
            found[name] = weights
        return found


class _OfOwn(torch.autograd.Function):
    """A stack of tensors, as one that is there already."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, *own: Tensor) -> Tensor:
        del own
        return stacked.view_as(stacked)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *grad_outputs[0].unbind(0))


def stacks_of(layers: Sequence[nn.Module]) -> list[Stack]:
    """Layers by how they are built, each kind as one stack. The parameters become views, their values stay.

    Raises:
        ConfigError: if weights are on several devices, or of a dtype that is not floating-point (quantized ones).
    """
    kinds: list[list[int]] = []
    for number, layer in enumerate(layers):
        _check(layer, layers[0])
        alike = next((kind for kind in kinds if _is_alike(layers[kind[0]], layer)), None)
        if alike is None:
            kinds.append([number])
        else:
            alike.append(number)
    return [_stack(kind, [layers[number] for number in kind]) for kind in kinds]


def _stack(numbers: Sequence[int], layers: Sequence[nn.Module]) -> Stack:
    weights: dict[str, Tensor] = {}
    for name, _ in layers[0].named_parameters():
        own = [layer.get_parameter(name) for layer in layers]
        weights[name] = torch.stack([parameter.detach() for parameter in own])
        for index, parameter in enumerate(own):
            parameter.data = weights[name][index]
    buffers = {name: torch.stack([layer.get_buffer(name) for layer in layers]) for name, _ in layers[0].named_buffers()}
    return Stack(tuple(numbers), tuple(layers), weights, buffers)


def _check(layer: nn.Module, first: nn.Module) -> None:
    if is_quantized(layer):
        raise ConfigError("schedule='diagonal' cannot stack layers in int8; take schedule='sequential', or float32")
    device = next(first.parameters()).device
    for name, parameter in layer.named_parameters():
        if parameter.device != device:
            raise ConfigError(
                f"schedule='diagonal' wants the layers on one device, but {name} is on {parameter.device} and others are on "
                f"{device}; take schedule='sequential'"
            )
        if not parameter.is_floating_point():
            raise ConfigError(
                f"schedule='diagonal' cannot stack quantized weights ({name} is {parameter.dtype}); take schedule='sequential'"
            )


def _is_alike(first: nn.Module, other: nn.Module) -> bool:
    """The same modules, shapes and settings; what a layer's own number is does not count."""
    theirs = dict(other.named_modules())
    ours = dict(first.named_modules())
    return ours.keys() == theirs.keys() and all(_same_module(module, theirs[name]) for name, module in ours.items())


def _same_module(first: nn.Module, other: nn.Module) -> bool:
    if type(first) is not type(other) or first.training != other.training:
        return False
    for find in (nn.Module.named_parameters, nn.Module.named_buffers):
        shapes = [{name: (t.shape, t.dtype) for name, t in find(module, recurse=False)} for module in (first, other)]
        if shapes[0] != shapes[1]:
            return False
    ours, theirs = _settings(first), _settings(other)
    return ours.keys() == theirs.keys() and all(_is_equal(value, theirs[name]) for name, value in ours.items())


def _settings(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in _OWN_NUMBER}


def _is_equal(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if isinstance(value, Tensor) or type(value) is not type(other):
        return False
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords) == (other.func, other.args, other.keywords)
    return bool(value == other)
