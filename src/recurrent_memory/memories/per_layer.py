"""Memory tokens of every layer, carried within the layer (a Parallel RMT): read before the text, written after it.

Sivtsov, Rodkin, Kuzmin, Kuratov, Oseledets: Diagonal Batching Unlocks Parallelism in Recurrent Memory Transformers for
Long Contexts (arXiv:2506.05229), section 3: a layer gives its memory to the same layer of the next segment, so that layer l
of segment t waits for no other layer of segment t − 1.

The row is that of RMT, `[M ; x ; M]`. The paper's layer turns its memory and its input into its memory and its output; which
of a decoder's positions that means, where attention is causal, is settled here:

- Reading. When the row enters layer l, its first block becomes what layer l keeps. Nothing of that block goes on from a
  layer to the next: there the next layer's memory takes its place.
- Writing. The last block begins as M learned write tokens, the same in every segment, and goes up through the layers as
  text does. What layer l makes of it is what layer l keeps.

So what is kept has always come out of the layers below it, and a memory's size stays that of the hidden state it is taken
from. Were one block read and written, as in RMT's encoders, what a layer keeps would be added to itself at every segment
wherever a layer has a residual connection and no norm behind it, and grow with the text. Encoders have both blocks too:
`[CLS] M [SEP] x [SEP] M`.
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


class PerLayerMemory(LayerwiseMemory):
    """Each of L layers keeps M vectors: its output at the write tokens of the segment before. The first are learned.

    State: `layer_memory`, `[B, L, M, D]`.

    Raises:
        ConfigError: for an encoder–decoder.
    """

    is_positionwise: ClassVar[bool] = True
    recalls_at_start: ClassVar[bool] = True

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        weight = backbone.embedding.weight
        made: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        size, layers = config.num_memory_tokens, len(backbone.layers())
        self.write_tokens = nn.Parameter(torch.zeros(size, backbone.embedding_width, **made))
        self.initial_memory = nn.Parameter(torch.zeros(layers, size, backbone.layer_width, **made))
        self._read_start = len(backbone.prefix_ids)

    def reset_parameters(self, backbone: Backbone) -> None:
        """Draw write tokens and first memories from N(0, σ²), σ the standard deviation of the embedding layer's output."""
        for parameter in (self.write_tokens, self.initial_memory):
            if parameter.numel():
                nn.init.normal_(parameter, std=backbone.embedding_std())

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """The learned first memories for every row."""
        return {"layer_memory": self.initial_memory.expand(batch_size, -1, -1, -1)}

    def row_length(self, backbone: Backbone) -> int:
        """S + 2M, and the special tokens of an encoder."""
        size = self.config.num_memory_tokens
        return self.config.segment_length + 2 * size + backbone.num_special_tokens(size)

    def layer_weights(self) -> dict[str, Tensor]:
        """None: a layer reads and writes by its own attention."""
        return {}

    def rows(self, backbone: Backbone, segment: Segment, *, write: bool) -> Rows:
        """`[prefix ; 0 ; separator ; x ; suffix ; W]`: what is read is put into the place of the zeros at each layer."""
        tokens = self.write_tokens.expand(segment.input_ids.shape[0], -1, -1)
        return build_rows(backbone, segment, torch.zeros_like(tokens), tokens if write else None)

    def recall(
        self, weights: dict[str, Tensor], hidden: Float[Tensor, "B R D"], kept: dict[str, Tensor]
    ) -> Float[Tensor, "B R D"]:
        """See `LayerwiseMemory.recall`."""
        del weights
        memory, start = kept["layer_memory"], self._read_start
        return torch.cat([hidden[:, :start], memory.to(hidden.dtype), hidden[:, start + memory.shape[1] :]], 1)

    def remember(
        self, weights: dict[str, Tensor], written: Float[Tensor, "B M D"], kept: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `LayerwiseMemory.remember`."""
        del weights
        return {"layer_memory": written.to(kept["layer_memory"].dtype)}
