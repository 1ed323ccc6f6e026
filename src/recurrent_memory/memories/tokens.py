"""RMT memory tokens: a block of embeddings is read before the text and written after it.

Bulatov, Kuratov, Burtsev: Recurrent Memory Transformer, NeurIPS 2022 (arXiv:2207.06881), eq. 4–6; for encoders
Bulatov, Kuratov, Kapushev, Burtsev: Beyond Attention (arXiv:2402.04161), section 3.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..backbones.last_layer import take
from ..config import MemoryConfig
from ..segments import Segment
from .base import Memory, Rows, Run
from .carry import CARRIES
from .rows import build_rows, positions_at_end


class TokenMemory(Memory):
    """`M_{t+1}` is the last hidden state at the write positions of segment t, or made of it (`carry.py`); `M_0` is learned.

    State: `memory`, `[B, M, D]`.

    The last R memory tokens (`MemoryConfig.recent`) are not written by the model: they are the last R of `[M_t ; x]`, input
    embeddings both. The model has seen such a block when it was pretrained, a text that goes on, and need not learn to read it.

    Slot embeddings (`MemoryConfig.slot_embeddings`) are added to the memory where the model reads it, others in the write block,
    and are not carried. Hutchins et al.: Block-Recurrent Transformers (arXiv:2203.07852), "state IDs".
    """

    is_positionwise: ClassVar[bool] = True

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        weight = backbone.embedding.weight
        shape = (config.num_memory_tokens, backbone.embedding_width)
        self.initial_memory = nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
        self.carry = CARRIES[config.carry](config, weight)
        if config.slot_embeddings:
            self.read_slots = nn.Parameter(torch.zeros_like(self.initial_memory))
            if backbone.separate_write_block:
                self.write_slots = nn.Parameter(torch.zeros_like(self.initial_memory[: config.num_written]))

    def reset_parameters(self, backbone: Backbone) -> None:
        """Draw `M_0`, and slot embeddings, from N(0, σ²), σ the standard deviation of the embedding layer's output."""
        if self.initial_memory.numel():
            nn.init.normal_(self.initial_memory, std=backbone.embedding_std())
        self.carry.reset_parameters(backbone)
        if self.config.slot_embeddings:
            for slots in (self.read_slots, getattr(self, "write_slots", None)):
                # Drawn for M tokens each: what is drawn after it does not depend on how many are written.
                drawn = torch.empty_like(self.initial_memory)
                if slots is not None and drawn.numel():
                    slots.data.copy_(nn.init.normal_(drawn, std=backbone.embedding_std())[: len(slots)])

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """`M_0` for every row."""
        return {"memory": self.initial_memory.expand(batch_size, -1, -1)}

    def row_length(self, backbone: Backbone) -> int:
        """S + 2M - R for a decoder, S + M and special tokens elsewhere."""
        size = self.config.num_memory_tokens
        written = self.config.num_written if backbone.separate_write_block else 0
        return self.config.segment_length + size + written + backbone.num_special_tokens(size)

    def fold(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Memory.fold`."""
        rows = self._rows(backbone, segment, tensors["memory"])
        hidden = backbone.encode(rows.embeddings, rows.lengths)
        written = take(hidden, self._write_positions(backbone, rows))
        return rows.text_of(hidden), self._carried(written, tensors["memory"], rows, segment)

    def write(self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Memory.write`."""
        if self.config.num_memory_tokens == 0:
            return tensors
        rows = self._rows(backbone, segment, tensors["memory"])
        if self.config.num_written == 0:
            return self._carried(rows.embeddings[:, :0], tensors["memory"], rows, segment)
        written = backbone.encode_at(rows.embeddings, rows.lengths, self._write_positions(backbone, rows))
        return self._carried(written, tensors["memory"], rows, segment)

    def look(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor], run: Run | None = None
    ) -> tuple[Any, Rows]:
        """See `Memory.look`."""
        rows = build_rows(backbone, segment, self._read(tensors["memory"]), None)
        return (run or backbone.encode)(rows.embeddings, rows.lengths), rows

    def _rows(self, backbone: Backbone, segment: Segment, memory: Tensor) -> Rows:
        written = memory[:, : self.config.num_written] if backbone.separate_write_block else None
        if self.config.slot_embeddings and written is not None:
            written = written + self.write_slots
        return build_rows(backbone, segment, self._read(memory), written)

    def _read(self, memory: Tensor) -> Tensor:
        """The read block."""
        return memory + self.read_slots if self.config.slot_embeddings else memory

    def _write_positions(self, backbone: Backbone, rows: Rows) -> Tensor | slice:
        size, start = self.config.num_written, len(backbone.prefix_ids)
        return positions_at_end(rows, size) if backbone.separate_write_block else slice(start, start + size)

    def _carried(self, written: Tensor, memory: Tensor, rows: Rows, segment: Segment) -> dict[str, Tensor]:
        if self.config.num_memory_tokens == 0:
            return {"memory": memory}
        size = self.config.num_written
        # By name: what counts FLOPs hooks into positional arguments, and a view of M_0 without gradients has no place there.
        carried = self.carry(written.to(memory.dtype), before=memory[:, :size], initial=self.initial_memory[:size])
        if not self.config.recent:
            return {"memory": carried}
        text = rows.text_of(rows.embeddings).to(memory.dtype)
        recent = _last(torch.cat([memory[:, size:], text], 1), self.config.recent, segment)
        return {"memory": torch.cat([carried, recent], 1)}


def _last(both: Tensor, count: int, segment: Segment) -> Tensor:
    """The last R of `[R before ; text]`, in each row where its text ends."""
    if not segment.is_ragged:
        return both[:, both.shape[1] - count :]
    return take(both, segment.lengths[:, None] + torch.arange(count, device=both.device))
