"""Associative memory in every layer (ARMT): key–value pairs under a delta rule, read before the layer, written after it.

Rodkin, Kuratov, Bulatov, Burtsev: Associative Recurrent Memory Transformer (arXiv:2407.04841), eq. 1–8; the feature map
is DPFP of Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight Programmers (arXiv:2102.11174), eq. 37.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import MemoryConfig
from ..errors import ConfigError
from ..segments import Segment
from .base import Memory, Rows, Run
from .layers import watching
from .rows import build_rows, positions_at_end, take

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


class AssociativeMemory(Memory):
    """Each of L layers keeps a matrix `A` and a normaliser `z`; M learned write tokens stand at the end of every row.

    Before a layer, at every position: `h += φ(W_q h) A / (φ(W_q h)·z + ε)`. After it, at the write tokens:
    `k = φ(W_k h)`, `v̄ = kA/(k·z + ε)`, `β = σ(W_b h)`, `A += Σ β k ⊗ (W_v h − v̄)`, `z += Σ γ k` with
    `γ = clip(1 − (k·z + ε)/(‖k‖² + ε), 0, 1)` taken without gradient. On an empty memory v̄ = 0 and γ = 1.

    State: `A`, `[B, L, K, D]`, and `z`, `[B, L, K]`; zeros at first.
    """

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if backbone.family == "seq2seq":
            raise ConfigError(
                "kind='associative' is for decoders and encoders; for an encoder–decoder take kind='tokens'"
            )
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

    def fold(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Memory.fold`."""
        rows = self._rows(backbone, segment, write=True)
        if not self.config.num_memory_tokens:
            return rows.text_of(backbone.encode(rows.embeddings, rows.lengths)), tensors
        written: dict[int, tuple[Tensor, Tensor]] = {}
        where = positions_at_end(rows, self.config.num_memory_tokens)

        def after(layer: int, hidden: Tensor) -> None:
            matrix, normaliser = tensors["A"][:, layer], tensors["z"][:, layer]
            written[layer] = self._write(layer, take(hidden, where), matrix, normaliser)

        with watching(backbone.layers(), self._reader(tensors), after):
            hidden = backbone.encode(rows.embeddings, rows.lengths)
        pairs = [written[layer] for layer in range(len(written))]
        return rows.text_of(hidden), {
            "A": torch.stack([matrix for matrix, _ in pairs], 1),
            "z": torch.stack([normaliser for _, normaliser in pairs], 1),
        }

    def look(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor], run: Run | None = None
    ) -> tuple[Any, Rows]:
        """See `Memory.look`. Under a causal mask the text does not see the write tokens, and they are left out."""
        rows = self._rows(backbone, segment, write=not backbone.separate_write_block)
        if not self.config.num_memory_tokens:
            return (run or backbone.encode)(rows.embeddings, rows.lengths), rows
        with watching(backbone.layers(), self._reader(tensors)):
            return (run or backbone.encode)(rows.embeddings, rows.lengths), rows

    def _rows(self, backbone: Backbone, segment: Segment, *, write: bool) -> Rows:
        tokens = self.write_tokens.expand(segment.input_ids.shape[0], -1, -1)
        return build_rows(backbone, segment, read=None, write=tokens if write else None)

    def _reader(self, tensors: dict[str, Tensor]) -> Any:
        def before(layer: int, hidden: Tensor) -> Tensor:
            queries = dpfp(hidden.to(self.query.dtype) @ self.query[layer].mT, self.config.dpfp_order)
            found = _recall(queries, tensors["A"][:, layer], tensors["z"][:, layer])
            return hidden + found.to(hidden.dtype)

        return before

    def _write(
        self,
        layer: int,
        hidden: Float[Tensor, "B M D"],
        matrix: Float[Tensor, "B K D"],
        normaliser: Float[Tensor, "B K"],
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K"]]:
        hidden = hidden.to(self.key.dtype)
        keys = dpfp(hidden @ self.key[layer].mT, self.config.dpfp_order)
        known = _recall(keys, matrix, normaliser)
        rates = torch.sigmoid(hidden @ self.rate[layer] + self.rate_bias[layer])
        new = rates[..., None] * (hidden @ self.value[layer].mT - known)
        with torch.no_grad():
            overlap = (keys @ normaliser[..., None])[..., 0]
            share = (1 - (overlap + EPSILON) / (keys.pow(2).sum(-1) + EPSILON)).clamp(0, 1)
            is_empty = ~normaliser.any(-1, keepdim=True)
            share = torch.where(is_empty, torch.ones_like(share), share)
        return matrix + keys.mT @ new, normaliser + (share[..., None] * keys).sum(1)


def _recall(
    features: Float[Tensor, "B T K"], matrix: Float[Tensor, "B K D"], normaliser: Float[Tensor, "B K"]
) -> Float[Tensor, "B T D"]:
    """What a memory holds for some features; zeros where it is empty."""
    return (features @ matrix) / (features @ normaliser[..., None] + EPSILON)
