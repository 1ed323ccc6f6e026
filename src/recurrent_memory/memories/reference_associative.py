"""What associative memories compute, written for reading: one row, one position, one feature map at a time.

As in `reference.py`: the backbone's own layers run on one unpadded row; each is put into a wrapper that reads the memory
before it, position by position, and writes after it. Nothing of the fast code is used.

Rodkin, Kuratov, Bulatov, Burtsev: Associative Recurrent Memory Transformer (arXiv:2407.04841), eq. 1–8.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .reference import IGNORE, Reference, cut

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
    """

    write_tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    rate: Tensor
    rate_bias: Tensor
    order: int


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
    for hidden in written:
        key = feature_map(weights.key[number] @ hidden, weights.order)
        known = torch.zeros_like(hidden) if layer.is_empty else recall(key, layer)
        rate = torch.sigmoid(weights.rate[number] @ hidden + weights.rate_bias[number])
        matrix = matrix + rate * torch.outer(key, weights.value[number] @ hidden - known)
        share = 1 - (key @ layer.normaliser + EPSILON) / (key @ key + EPSILON)
        normaliser = normaliser + (1.0 if layer.is_empty else share.clamp(0, 1).detach()) * key
    return Layer(matrix, normaliser, is_empty=False)


class _Wrapped(nn.Module):
    """A layer with its memory; what else the model asks of the layer, it gives."""

    def __init__(self, layer: nn.Module, number: int, weights: Weights, memory: Layer) -> None:
        super().__init__()
        self.layer, self.number, self.weights, self.memory = layer, number, weights, memory
        self.output = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.memory.is_empty:
            queries = [feature_map(self.weights.query[self.number] @ h, self.weights.order) for h in hidden[0]]
            hidden = torch.stack([h + recall(q, self.memory) for h, q in zip(hidden[0], queries, strict=True)])[None]
        output = self.layer(hidden, *args, **kwargs)
        self.output = (output[0] if isinstance(output, tuple) else output)[0]
        return output


@contextmanager
def _wrapped(backbone: Any, weights: Weights, memory: Sequence[Layer]) -> Generator[list[_Wrapped]]:
    """While this lasts, the layers of the model are in their wrappers."""
    layers = next(m for m in backbone.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == len(memory))
    plain = list(layers)
    wrapped = [_Wrapped(layer, number, weights, memory[number]) for number, layer in enumerate(plain)]
    try:
        for number, layer in enumerate(wrapped):
            layers[number] = layer
        yield wrapped
    finally:
        for number, layer in enumerate(plain):
            layers[number] = layer


@dataclass
class AssociativeReference:
    """A text, read from its beginning.

    Args:
        backbone: The Hugging Face model. What its head is decides what the logits are.
        weights: The memory's parameters.
        prefix: Special ids before the text.
        suffix: Special ids after it.
        is_causal: Whether the text does not see the write tokens.
        memory: Of each layer.
    """

    backbone: Any
    weights: Weights
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    is_causal: bool = True
    memory: list[Layer] = field(default_factory=list[Layer])

    def __post_init__(self) -> None:
        features = 2 * self.weights.order * self.weights.key.shape[1]
        width = self.weights.value.shape[1]
        like = self.weights.value
        self.memory = [Layer(like.new_zeros(features, width), like.new_zeros(features)) for _ in like]

    def segment(self, ids: Sequence[int], *, fold: bool) -> Tensor:
        """One segment: the logits at the text, or of the class; remembered if it is folded."""
        row = self.backbone.get_input_embeddings()(torch.tensor([*self.prefix, *ids, *self.suffix], dtype=torch.long))
        if fold or not self.is_causal:
            row = torch.cat([row, self.weights.write_tokens])
        if not len(row):
            return row.new_zeros(0, self.backbone.config.get_text_config().vocab_size)
        with _wrapped(self.backbone, self.weights, self.memory) as layers:
            logits = self.backbone(inputs_embeds=row[None]).logits[0]
            written = [layer.output[-len(self.weights.write_tokens) :] for layer in layers]
        if fold:
            self.memory = [
                remember(self.weights, number, layer, hidden)
                for number, (layer, hidden) in enumerate(zip(self.memory, written, strict=True))
            ]
        start = len(self.prefix)
        return logits[start : start + len(ids)] if logits.ndim == 2 else logits

    def read(self, text: Sequence[int], segment_length: int, labels: Sequence[int] | int | None = None) -> Reference:
        """A text from its beginning; labels as for `reference.decoder` and `reference.encoder`."""
        segments = cut(text, segment_length)
        pieces = [self.segment(ids, fold=index < len(segments) - 1) for index, ids in enumerate(segments)]
        logits = torch.cat(pieces) if pieces[0].ndim == 2 else pieces[-1]
        loss_sum, count = logits.sum() * 0.0, 0
        if isinstance(labels, int):
            loss_sum, count = cross_entropy(logits, torch.tensor(labels)), 1
        elif labels is not None:
            shift = int(self.is_causal)
            for position in range(shift, len(text)):
                if labels[position] != IGNORE:
                    loss_sum = loss_sum + cross_entropy(logits[position - shift], torch.tensor(labels[position]))
                    count += 1
        tensors = {
            "A": torch.stack([layer.matrix for layer in self.memory]),
            "z": torch.stack([layer.normaliser for layer in self.memory]),
        }
        return Reference(tensors, segments[-1], len(segments) - 1, logits, loss_sum, count)
