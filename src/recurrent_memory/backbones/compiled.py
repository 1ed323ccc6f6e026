"""Layers compiled by `torch.compile`: what lies between their matrix products becomes one pass over memory."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ..errors import ConfigError
from .base import Backbone


def compile_layers(backbone: Backbone) -> None:
    """Have the layers compiled when they are next called, once for each kind of layer; it takes half a minute.

    The last one is left as it is, since it seldom runs as a whole (`last_layer.py`).

    Raises:
        ConfigError: if there is no C++ compiler for a model on the CPU.
        BackboneError: if the model has no list of layers.
    """
    if backbone.embedding.weight.device.type == "cpu":
        _check_compiler()
    for layer in backbone.layers()[:-1]:
        layer.compile()


def release_layers(backbone: Backbone) -> None:
    """Undo `compile_layers`.

    Raises:
        BackboneError: if the model has no list of layers.
    """
    for layer in backbone.layers():
        cast(Any, layer)._compiled_call_impl = None  # what `nn.Module.compile` sets, and has no way to take back


def is_compiled(layer: nn.Module) -> bool:
    """Whether a layer is to run compiled."""
    return cast(Any, layer)._compiled_call_impl is not None


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (RuntimeError, torch._inductor.exc.InvalidCxxCompiler) as error:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        raise ConfigError(
            "fast='compile' needs a C++ compiler on a CPU, and none is here; install g++, or take fast='auto'"
        ) from error
