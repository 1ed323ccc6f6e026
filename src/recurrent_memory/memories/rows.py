"""The rows of embeddings that a backbone sees of a segment: special tokens, blocks of memory, text."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backbones.base import Backbone
from ..segments import Segment
from .base import Rows


def build_rows(
    backbone: Backbone,
    segment: Segment,
    read: Float[Tensor, "B M D"] | None,
    write: Float[Tensor, "B W D"] | None,
) -> Rows:
    """`[prefix ; read ; separator ; x ; suffix ; write]`; without a block to read, without the separator.

    Rows of unequal length are padded on the right: what follows the text moves up to its end.

    Args:
        backbone: The model.
        segment: The text.
        read: The block before the text.
        write: The block after it.
    """
    embeddings = backbone.embed(segment.input_ids)
    batch, width = segment.input_ids.shape
    size = 0 if read is None else read.shape[1]
    separator = backbone.separator_ids if size else ()
    memory = None if read is None else read.to(embeddings.dtype)
    head = [_special(backbone, backbone.prefix_ids, batch), memory, _special(backbone, separator, batch)]
    tail = [_special(backbone, backbone.suffix_ids, batch)]
    if write is not None:
        tail.append(write.to(embeddings.dtype))
    start = len(backbone.prefix_ids) + size + len(separator)
    present = [block for block in (*head, embeddings, *tail) if block is not None and block.shape[1]]
    rows = torch.cat(present, 1) if len(present) > 1 else present[0]
    if not segment.is_ragged:
        return Rows(rows, None, start, width)
    ending = [block for block in tail if block is not None and block.shape[1]]
    tail_width = sum(block.shape[1] for block in ending)
    if ending:
        positions = start + segment.lengths[:, None] + torch.arange(tail_width, device=rows.device)
        rows = rows.scatter(1, positions[..., None].expand(-1, -1, rows.shape[-1]), torch.cat(ending, 1))
    return Rows(rows, start + segment.lengths + tail_width, start, width)


def positions_at_end(rows: Rows, count: int) -> Int[Tensor, "B M"] | slice:
    """Where the last `count` real positions of each row are, counted from the end where that is the same in all rows."""
    if rows.lengths is None:
        return slice(-count, None) if count else slice(0, 0)
    return rows.lengths[:, None] - count + torch.arange(count, device=rows.lengths.device)


def _special(backbone: Backbone, ids: tuple[int, ...], batch: int) -> Tensor | None:
    if not ids:
        return None
    device = backbone.embedding.weight.device
    return backbone.embed(torch.tensor(ids, device=device)[None].expand(batch, -1))
