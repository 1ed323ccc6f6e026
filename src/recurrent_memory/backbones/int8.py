"""Layers whose matrix products are of whole numbers in eight bits: faster on CPUs that have instructions for it, the same on others.

Weights are rounded once, with a scale for each output channel; what they are multiplied with is rounded as it comes, with a scale
for each position (dynamic quantization; LLM.int8() without its outliers, Dettmers et al., arXiv:2208.07339, section 2.2). So a
position's result does not depend on what else is in the batch. Norms, attention, embeddings, the head and the memory stay as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError
from .base import Backbone
from .int8_product import faster_way

_LARGEST = 127


class Int8Linear(nn.Module):
    """`y = x Wᵀ + b` with W and x in eight bits, sums in 32 bits, y and b in floating point.

    Args:
        weight: W.
        bias: b, if there is one.
    """

    weight: Tensor  # int8 `[O, I]`
    scale: Tensor  # `[O]`
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None) -> None:
        super().__init__()
        rounded, scale = _rounded(weight.detach())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale[:, 0])
        self._multiply = faster_way()  # here, not in forward: what is compiled must not measure
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, hidden: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """The product, without gradients.

        Raises:
            ConfigError: if a gradient is to go through.
        """
        if hidden.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "a model in int8 cannot be trained, nothing comes back through its rounding; load it in float32"
            )
        rounded, scale = _rounded(hidden.reshape(-1, hidden.shape[-1]))
        product = self._multiply(rounded, self.weight) * scale
        whole = product * self.scale if self.bias is None else torch.addcmul(self.bias, product, self.scale)
        return whole.view(*hidden.shape[:-1], len(self.scale))


def _rounded(rows: Float[Tensor, "R C"]) -> tuple[Tensor, Float[Tensor, "R 1"]]:
    """Each row as whole numbers of -127 to 127, and what they are to be multiplied with."""
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny) / _LARGEST
    return (rows / scale).round().to(torch.int8), scale


@torch.no_grad()
def quantize_layers(backbone: Backbone) -> None:
    """Put an `Int8Linear` in the place of every linear module in the layers.

    Raises:
        ConfigError: if the model is not in float32 on a CPU, or its layers have no linear modules (quantized in another way).
        BackboneError: if the model has no list of layers.
    """
    weight = backbone.embedding.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ConfigError(
            f"int8 is for a model in float32 on a CPU, and this one is in {str(weight.dtype).removeprefix('torch.')} on "
            f"{weight.device}; take bfloat16 there"
        )
    found = 0
    for layer in backbone.layers():
        for parent in list(layer.modules()):
            for name, module in list(parent.named_children()):
                made = _quantized(module)
                if made is not None:
                    setattr(parent, name, made)
                    found += 1
    if not found:
        raise ConfigError(
            f"int8: the layers of {type(backbone.model).__name__} have no linear modules to round; take float32 or bfloat16"
        )


def compute_dtype(model: PreTrainedModel) -> str:
    """What the layers of a model compute in: `int8`, or the name of the model's dtype."""
    return "int8" if is_quantized(model) else str(model.dtype).removeprefix("torch.")


def is_quantized(module: nn.Module) -> bool:
    """Whether there is an `Int8Linear` inside."""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def _quantized(module: nn.Module) -> Int8Linear | None:
    if type(module) is nn.Linear:
        return Int8Linear(module.weight, module.bias)
    if type(module) is Conv1D:  # GPT-2's: its weight lies the other way round
        return Int8Linear(module.weight.t(), module.bias)
    return None
