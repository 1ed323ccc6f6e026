"""Associative memory in every layer (ARMT): key–value pairs under a delta rule, read before the layer, written after it.

Rodkin, Kuratov, Bulatov, Burtsev: Associative Recurrent Memory Transformer (arXiv:2407.04841), eq. 1–8; the feature map
is DPFP of Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight Programmers (arXiv:2102.11174), eq. 37.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import MemoryConfig
from ..segments import Segment
from .base import Rows
from .layerwise import LayerwiseMemory
from .rows import build_rows

EPSILON = 1e-5


def dpfp(x: Float[Tensor, "... d"], order: int) -> Float[Tensor, "... K"]:
    """The deterministic parameter-free projection: u = [relu x; relu −x], then u · roll(u, j) for j = 1 … ν, side by side.

    Args:
        x: Keys or queries.
        order: ν.

    Returns:
        K = 2·ν·d features, none negative.

    Example:
        >>> dpfp(torch.tensor([1.0, -2.0]), 1).tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    halves = torch.cat([x.relu(), (-x).relu()], -1)
    return torch.cat([halves * halves.roll(shift, -1) for shift in range(1, order + 1)], -1)


class AssociativeMemory(LayerwiseMemory):
    """Each of L layers keeps a matrix `A` and a normaliser `z`; M learned write tokens stand at the end of every row.

    Before a layer, at every position: `h += φ(W_q h) A / (φ(W_q h)·z + ε)`. After it, at the write tokens:
    `k = φ(W_k h)`, `v̄ = kA/(k·z + ε)`, `β = σ(W_b h)`, `A += Σ β k ⊗ (W_v h − v̄)`, `z += Σ γ k` with
    `γ = clip(1 − (k·z + ε)/(‖k‖² + ε), 0, 1)` taken without gradient. On an empty memory v̄ = 0 and γ = 1. With
    `cover` c above 0, which is not in the paper, then `z = max(z, c k)`.

    State: `A`, `[B, L, K, D]`, and `z`, `[B, L, K]`; zeros at first.
    """

    is_positionwise: ClassVar[bool] = True

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        weight = backbone.embedding.weight
        made: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        layers, width, small = len(backbone.layers()), backbone.layer_width, config.key_width
        self.write_tokens = nn.Parameter(torch.zeros(config.num_memory_tokens, backbone.embedding_width, **made))
        self.query = nn.Parameter(torch.zeros(layers, small, width, **made))
        self.key = nn.Parameter(torch.zeros(layers, small, width, **made))
        self.value = nn.Parameter(torch.zeros(layers, width, width, **made))
        self.rate = nn.Parameter(torch.zeros(layers, width, **made))
        self.rate_bias = nn.Parameter(torch.zeros(layers, **made))

    def reset_parameters(self, backbone: Backbone) -> None:
        """Write tokens from N(0, σ²), σ that of the embedding layer's output; W_q, W_k, W_b from N(0, 1/D); W_v, b zero."""
        if self.write_tokens.numel():
            nn.init.normal_(self.write_tokens, std=backbone.embedding_std())
        for parameter in (self.query, self.key, self.rate):
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        nn.init.zeros_(self.value)
        nn.init.zeros_(self.rate_bias)

    @property
    def num_features(self) -> int:
        """K."""
        return 2 * self.config.dpfp_order * self.config.key_width

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """Nothing."""
        layers, width = self.value.shape[:2]
        return {
            "A": self.value.new_zeros(batch_size, layers, self.num_features, width),
            "z": self.value.new_zeros(batch_size, layers, self.num_features),
        }

    def row_length(self, backbone: Backbone) -> int:
        """S + M, and the special tokens of an encoder."""
        size = self.config.num_memory_tokens
        return self.config.segment_length + size + backbone.num_special_tokens(0)

    def layer_weights(self) -> dict[str, Tensor]:
        """W_q, W_k, W_v and W_b of each layer."""
        return {name: getattr(self, name) for name in ("query", "key", "value", "rate", "rate_bias")}

    def rows(self, backbone: Backbone, segment: Segment, *, write: bool) -> Rows:
        """`[prefix ; x ; suffix ; W]`."""
        tokens = self.write_tokens.expand(segment.input_ids.shape[0], -1, -1)
        return build_rows(backbone, segment, read=None, write=tokens if write else None)

    def recall(
        self, weights: dict[str, Tensor], hidden: Float[Tensor, "B R D"], kept: dict[str, Tensor]
    ) -> Float[Tensor, "B R D"]:
        """See `LayerwiseMemory.recall`."""
        queries = dpfp(hidden.to(weights["query"].dtype) @ weights["query"].mT, self.config.dpfp_order)
        return hidden + _recall(queries, kept["A"], kept["z"]).to(hidden.dtype)

    def remember(
        self, weights: dict[str, Tensor], written: Float[Tensor, "B M D"], kept: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `LayerwiseMemory.remember`."""
        matrix, normaliser = kept["A"], kept["z"]
        written = written.to(weights["key"].dtype)
        keys = dpfp(written @ weights["key"].mT, self.config.dpfp_order)
        known = _recall(keys, matrix, normaliser)
        rates = torch.sigmoid(written @ weights["rate"] + weights["rate_bias"])
        new = rates[..., None] * (written @ weights["value"].mT - known)
        with torch.no_grad():
            overlap = (keys @ normaliser[..., None])[..., 0]
            share = (1 - (overlap + EPSILON) / (keys.pow(2).sum(-1) + EPSILON)).clamp(0, 1)
            is_empty = ~normaliser.any(-1, keepdim=True)
            share = torch.where(is_empty, torch.ones_like(share), share)
        normaliser = normaliser + (share[..., None] * keys).sum(1)
        if self.config.cover:
            normaliser = torch.maximum(normaliser, self.config.cover * keys.amax(1))
        return {"A": matrix + keys.mT @ new, "z": normaliser}

    def change(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Float[Tensor, ""]:
        """‖ΔA‖ / (‖A‖ + 0.01 ‖z‖ √D), its mean over rows and layers.

        The norm and not its square: a matrix that takes the same small step in every segment goes far, and the gradient of a
        square would hardly see it. In proportion to the matrix: layers differ by orders of magnitude. One of which less than
        a hundredth of a hidden state of unit variance is recalled counts as one of which that is.
        """
        least = 0.01 * self.value.shape[-1] ** 0.5 * torch.linalg.vector_norm(after["z"].detach(), dim=-1) + EPSILON
        moved = torch.linalg.matrix_norm(after["A"] - before["A"])
        return (moved / (torch.linalg.matrix_norm(before["A"]) + least)).mean()


def _recall(
    features: Float[Tensor, "B T K"], matrix: Float[Tensor, "B K D"], normaliser: Float[Tensor, "B K"]
) -> Float[Tensor, "B T D"]:
    """What a memory holds for some features; zeros where it is empty."""
    return (features @ matrix) / (features @ normaliser[..., None] + EPSILON)
