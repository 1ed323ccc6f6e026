"""Many rows through the model, a few at a time where that is quicker."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ..model import RecurrentMemoryModel
from ..segments import Segment
from ..state import MemoryState

CPU_POSITIONS = 1024
"""So many positions at a time keep what a small model computes in the caches of a core (measured: 8 rows of 128 tokens
at 40,000 tokens/s against 64 rows at 35,000, on one thread)."""


@torch.no_grad()
def fold_rows(model: RecurrentMemoryModel, ids: Int[Tensor, "B T"], state: MemoryState) -> MemoryState:
    """The state after a segment that is equally long in all rows; nothing is pending in it."""
    count = len(ids)
    size = max(1, CPU_POSITIONS // max(1, ids.shape[1])) if ids.device.type == "cpu" else count
    if count <= size:
        return model.step(Segment.full(ids), state, return_hidden=False)[1].detach()
    parts = [
        model.step(Segment.full(part), state.index(slice(first, first + size)), return_hidden=False)[1].detach()
        for first, part in zip(range(0, count, size), ids.split(size), strict=True)
    ]
    return MemoryState.cat(parts)
