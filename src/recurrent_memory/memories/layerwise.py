"""Memories that every layer keeps for itself: read when a row enters the layer, written when it leaves.

What layer l does in segment t needs layer l of segment t − 1 and layer l − 1 of segment t, and nothing else. That is what
the diagonal schedule (`inference/diagonal.py`) lives on, and all that a kind of memory says here, it can use.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.last_layer import take
from ..config import MemoryConfig
from ..errors import ConfigError
from ..segments import Segment
from .base import Memory, Rows, Run
from .layers import watching
from .rows import positions_at_end


class LayerwiseMemory(Memory):
    """A memory in each of L layers. M write tokens stand at the end of every row that is folded.

    A kind says what is recalled when a row enters a layer, and what is remembered of the write tokens when it leaves. Both
    see one layer: its weights, without the layer axis, and what it keeps, `[B, …]`. They must be functions of their
    arguments that `torch.vmap` can run for several layers at once: no branch on a value.

    State: tensors `[B, L, …]`.

    `recalls_at_start`: whether `recall` changes nothing behind a row's first block, so that of a row that grows
    (`Backbone.continued`) it concerns the first run alone.

    Raises:
        ConfigError: for an encoder–decoder.
    """

    recalls_at_start: ClassVar[bool] = False

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if backbone.family == "seq2seq":
            raise ConfigError(
                f"kind={config.kind!r} is for decoders and encoders; for an encoder–decoder take kind='tokens'"
            )

    @abstractmethod
    def layer_weights(self) -> dict[str, Tensor]:
        """The parameters that each layer has of its own, by name, `[L, …]`."""

    @abstractmethod
    def rows(self, backbone: Backbone, segment: Segment, *, write: bool) -> Rows:
        """The rows of a segment, with the write tokens at their end if `write`."""

    @abstractmethod
    def recall(
        self, weights: dict[str, Tensor], hidden: Float[Tensor, "B R D"], kept: dict[str, Tensor]
    ) -> Float[Tensor, "B R D"]:
        """What goes into a layer in place of `hidden`.

        Args:
            weights: The layer's, of `layer_weights`.
            hidden: What would go in without a memory.
            kept: What the layer keeps, `[B, …]`.
        """

    @abstractmethod
    def remember(
        self, weights: dict[str, Tensor], written: Float[Tensor, "B M D"], kept: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What a layer keeps after a segment.

        Args:
            weights: The layer's, of `layer_weights`.
            written: The layer's output at the write tokens.
            kept: What it kept before, `[B, …]`.
        """

    def change(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Float[Tensor, ""]:
        """How much of what the layers keep has changed over a segment, a loss: here the mean square of the differences.

        Args:
            before: What was kept before the segment.
            after: What is kept after it.
        """
        return torch.stack([(after[name] - kept).square().mean() for name, kept in before.items()]).mean()

    def fold(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Memory.fold`."""
        rows = self.rows(backbone, segment, write=True)
        if not self.config.num_memory_tokens:
            return rows.text_of(backbone.encode(rows.embeddings, rows.lengths)), tensors
        with self._remembering(backbone, rows, tensors) as new:
            hidden = backbone.encode(rows.embeddings, rows.lengths)
        return rows.text_of(hidden), new

    def write(self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Memory.write`: the last layer runs at the write tokens alone."""
        if not self.config.num_memory_tokens:
            return tensors
        rows = self.rows(backbone, segment, write=True)
        with self._remembering(backbone, rows, tensors) as new:
            backbone.encode_at(rows.embeddings, rows.lengths, positions_at_end(rows, self.config.num_memory_tokens))
        return new

    @contextmanager
    def _remembering(self, backbone: Backbone, rows: Rows, tensors: dict[str, Tensor]) -> Generator[dict[str, Tensor]]:
        """While this lasts, layers recall and remember; what they keep then stands in the dictionary that is given."""
        size, weights = self.config.num_memory_tokens, self.layer_weights()
        where, layers = positions_at_end(rows, size), backbone.layers()
        recall = self._before(backbone, weights, tensors)
        kept: dict[int, dict[str, Tensor]] = {}
        new: dict[str, Tensor] = {}

        def is_written(layer: int, hidden: Tensor) -> bool:
            """Whether a layer, the last, is run at the write tokens alone (`last_layer.py`)."""
            return layer == len(layers) - 1 and hidden.shape[1] == size

        def before(layer: int, hidden: Tensor) -> Tensor:
            is_behind = self.recalls_at_start and is_written(layer, hidden)
            return hidden if is_behind else recall(layer, hidden)

        def after(layer: int, hidden: Tensor) -> None:
            written = hidden if is_written(layer, hidden) else take(hidden, where)
            kept[layer] = self.remember(_of_layer(weights, layer), written, _in_layer(tensors, layer))

        with watching(layers, before, after):
            yield new
        new.update({name: torch.stack([kept[layer][name] for layer in range(len(kept))], 1) for name in tensors})

    def look(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor], run: Run | None = None
    ) -> tuple[Any, Rows]:
        """See `Memory.look`. Under a causal mask the text does not see the write tokens, and they are left out."""
        rows = self.rows(backbone, segment, write=not backbone.separate_write_block)
        if not self.config.num_memory_tokens:
            return (run or backbone.encode)(rows.embeddings, rows.lengths), rows
        with watching(backbone.layers(), self._before(backbone, self.layer_weights(), tensors)):
            return (run or backbone.encode)(rows.embeddings, rows.lengths), rows

    def _before(self, backbone: Backbone, weights: dict[str, Tensor], tensors: dict[str, Tensor]) -> Any:
        is_past = self.recalls_at_start and backbone.num_known > 0

        def before(layer: int, hidden: Tensor) -> Tensor:
            if is_past:
                return hidden
            return self.recall(_of_layer(weights, layer), hidden, _in_layer(tensors, layer))

        return before


def _of_layer(weights: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    return {name: tensor[layer] for name, tensor in weights.items()}


def _in_layer(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    return {name: tensor[:, layer] for name, tensor in tensors.items()}
