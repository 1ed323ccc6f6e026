"""Memories in every layer, written for reading: one row at a time, and each layer in a wrapper that reads and writes.

Nothing of the fast code is used. What a layer does with its memory, `reference_associative.py` and
`reference_per_layer.py` say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .reference import IGNORE, Reference, cut

Recall = Callable[[int, Float[Tensor, "R D"]], Float[Tensor, "R D"]]
Kept = TypeVar("Kept")


class _Wrapped(nn.Module):
    """A layer that is given what was recalled; what else the model asks of the layer, it gives."""

    def __init__(self, layer: nn.Module, number: int, recall: Recall) -> None:
        super().__init__()
        self.layer, self.number, self.recall = layer, number, recall
        self.output = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.layer(self.recall(self.number, hidden[0])[None], *args, **kwargs)
        self.output = (output[0] if isinstance(output, tuple) else output)[0]
        return output


@contextmanager
def _wrapped(backbone: Any, count: int, recall: Recall) -> Generator[list[_Wrapped]]:
    """While this lasts, the layers of the model are in their wrappers."""
    layers = next(m for m in backbone.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    plain = list(layers)
    wrapped = [_Wrapped(layer, number, recall) for number, layer in enumerate(plain)]
    try:
        for number, layer in enumerate(wrapped):
            layers[number] = layer
        yield wrapped
    finally:
        for number, layer in enumerate(plain):
            layers[number] = layer


class LayerwiseReference(ABC, Generic[Kept]):
    """A text, read from its beginning.

    Args:
        backbone: The Hugging Face model. What its head is decides what the logits are.
        write_tokens: `[M, E]`, E the width of embeddings.
        memory: What each layer keeps before any text.
        prefix: Special ids before the text.
        suffix: Special ids after it.
        is_causal: Whether the text does not see the write tokens.
    """

    def __init__(
        self,
        backbone: Any,
        write_tokens: Float[Tensor, "M E"],
        memory: list[Kept],
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        is_causal: bool = True,
    ) -> None:
        self.backbone, self.write_tokens, self.memory = backbone, write_tokens, memory
        self.prefix, self.suffix, self.is_causal = prefix, suffix, is_causal

    @abstractmethod
    def before_text(self) -> Float[Tensor, "P E"]:
        """The input embeddings before the text."""

    @abstractmethod
    def recall(self, number: int, hidden: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """What goes into a layer."""

    @abstractmethod
    def remember(self, number: int, written: Float[Tensor, "M D"]) -> Kept:
        """What a layer keeps after a segment, by its output at the write tokens."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What all layers keep, `[L, …]`, by the names that the library gives it."""

    @abstractmethod
    def detached(self, kept: Kept) -> Kept:
        """The same, cut from the graph."""

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "T D"]:
        """The input embeddings of some ids."""
        return self.backbone.get_input_embeddings()(torch.tensor([list(ids)], dtype=torch.long))[0]

    def segment(self, ids: Sequence[int], *, fold: bool) -> Tensor:
        """One segment: the logits at the text, or of the class; remembered if it is folded."""
        before = self.before_text()
        row = torch.cat([before, self.embed([*ids, *self.suffix])])
        if fold or not self.is_causal:
            row = torch.cat([row, self.write_tokens])
        if not ids and self.is_causal:
            return row.new_zeros(0, self.backbone.config.get_text_config().vocab_size)
        with _wrapped(self.backbone, len(self.memory), self.recall) as layers:
            logits = self.backbone(inputs_embeds=row[None]).logits[0]
            written = [layer.output[-len(self.write_tokens) :] for layer in layers]
        if fold:
            self.memory = [self.remember(number, hidden) for number, hidden in enumerate(written)]
        return logits[len(before) : len(before) + len(ids)] if logits.ndim == 2 else logits

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
        return Reference(self.tensors(), segments[-1], len(segments) - 1, logits, loss_sum, count)
