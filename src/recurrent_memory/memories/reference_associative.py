"""What associative memories compute, written for reading: one row, one position, one feature map at a time.

As in `reference.py`: the backbone's own layers run on one unpadded row; each is put into a wrapper that reads the memory
before it, position by position, and writes after it. Nothing of the fast code is used.

Rodkin, Kuratov, Bulatov, Burtsev: Associative Recurrent Memory Transformer (arXiv:2407.04841), eq. 1–8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .reference_layers import LayerwiseReference

EPSILON = 1e-5


@dataclass(frozen=True)
class Weights:
    """The parameters of a memory.

    Args:
        write_tokens: `[M, D]`.
        query: `[L, d, D]`, W_q of each layer.
        key: `[L, d, D]`, W_k.
        value: `[L, D, D]`, W_v.
        rate: `[L, D]`, W_b.
        rate_bias: `[L]`.
        order: ν of the feature map.
        cover: The share of a key's features that the normaliser has at least; 0 in the paper.
    """

    write_tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    rate: Tensor
    rate_bias: Tensor
    order: int
    cover: float = 0.0


@dataclass
class Layer:
    """The memory of one layer: `A`, `[K, D]`, and `z`, `[K]`."""

    matrix: Tensor
    normaliser: Tensor
    is_empty: bool = True


def feature_map(x: Float[Tensor, " d"], order: int) -> Float[Tensor, " K"]:
    """φ: u = [relu x; relu −x], then u_i · u_{i−j} for j = 1 … ν."""
    u = torch.cat([x.clamp(min=0), (-x).clamp(min=0)])
    earlier = [[(i - j) % len(u) for i in range(len(u))] for j in range(1, order + 1)]
    return torch.cat([u * u[indices] for indices in earlier])


def recall(features: Float[Tensor, " K"], layer: Layer) -> Float[Tensor, " D"]:
    """What the memory of a layer holds for a query or a key."""
    return features @ layer.matrix / (features @ layer.normaliser + EPSILON)


def remember(weights: Weights, number: int, layer: Layer, written: Float[Tensor, "M D"]) -> Layer:
    """The memory of a layer after a segment, by its output at the write tokens."""
    matrix, normaliser = layer.matrix, layer.normaliser
    keys: list[Tensor] = []
    for hidden in written:
        key = feature_map(weights.key[number] @ hidden, weights.order)
        known = torch.zeros_like(hidden) if layer.is_empty else recall(key, layer)
        rate = torch.sigmoid(weights.rate[number] @ hidden + weights.rate_bias[number])
        matrix = matrix + rate * torch.outer(key, weights.value[number] @ hidden - known)
        share = 1 - (key @ layer.normaliser + EPSILON) / (key @ key + EPSILON)
        normaliser = normaliser + (1.0 if layer.is_empty else share.clamp(0, 1).detach()) * key
        keys.append(key)
    for key in keys:
        few = normaliser < weights.cover * key
        normaliser = torch.where(few, weights.cover * key, normaliser)
    return Layer(matrix, normaliser, is_empty=False)


class AssociativeReference(LayerwiseReference[Layer]):
    """A text, read from its beginning.

    Args:
        backbone: The Hugging Face model. What its head is decides what the logits are.
        weights: The memory's parameters.
        prefix: Special ids before the text.
        suffix: Special ids after it.
        is_causal: Whether the text does not see the write tokens.
    """

    def __init__(
        self,
        backbone: Any,
        weights: Weights,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        is_causal: bool = True,
    ) -> None:
        features, width = 2 * weights.order * weights.key.shape[1], weights.value.shape[1]
        like = weights.value
        memory = [Layer(like.new_zeros(features, width), like.new_zeros(features)) for _ in like]
        super().__init__(backbone, weights.write_tokens, memory, prefix, suffix, is_causal)
        self.weights = weights

    def before_text(self) -> Float[Tensor, "P D"]:
        """Special tokens alone."""
        return self.embed(self.prefix)

    def recall(self, number: int, hidden: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Each position with what the layer's memory holds for it; an empty memory is not asked."""
        memory = self.memory[number]
        if memory.is_empty:
            return hidden
        queries = [feature_map(self.weights.query[number] @ h, self.weights.order) for h in hidden]
        return torch.stack([h + recall(q, memory) for h, q in zip(hidden, queries, strict=True)])

    def remember(self, number: int, written: Float[Tensor, "M D"]) -> Layer:
        """See `remember`."""
        return remember(self.weights, number, self.memory[number], written)

    def tensors(self) -> dict[str, Tensor]:
        """`A`, `[L, K, D]`, and `z`, `[L, K]`."""
        return {
            "A": torch.stack([layer.matrix for layer in self.memory]),
            "z": torch.stack([layer.normaliser for layer in self.memory]),
        }

    def detached(self, kept: Layer) -> Layer:
        """See `LayerwiseReference.detached`."""
        return Layer(kept.matrix.detach(), kept.normaliser.detach(), kept.is_empty)
