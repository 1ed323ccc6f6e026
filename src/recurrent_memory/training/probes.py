"""Two linear probes that are trained beside the model and thrown away: they show it early what is worth keeping.

Without them a small model from scratch learns within a minute to say *some* place that was named, and then stays for a
long time without learning whose place it is: neither the writer nor the reader of the memory gains by keeping people
apart before the other does. The probes give each its own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from ..tasks.whereabouts import PEOPLE, PLACES
from .lanes import Lane


class MemoryProbe(nn.Module):
    """Reads who is where from the whole memory, linearly.

    Args:
        num_memory_tokens: M.
        width: D.
    """

    def __init__(self, num_memory_tokens: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_memory_tokens * width, len(PEOPLE) * len(PLACES))

    def loss(self, memory: Float[Tensor, "B M D"], lanes: Sequence[Lane]) -> tuple[Tensor, float]:
        """Summed cross-entropy over people heard of, a little towards every place alike for the others; accuracy."""
        logits = self.linear(memory.flatten(1)).view(-1, len(PEOPLE), len(PLACES))
        target = torch.tensor(
            [[PLACES.index(lane.known[p]) if p in lane.known else -1 for p in PEOPLE] for lane in lanes]
        )
        known = target >= 0
        unknown = ~known & torch.tensor([[p not in lane.lost for p in PEOPLE] for lane in lanes])
        loss = -0.1 * log_softmax(logits[unknown], -1).mean(-1).sum()
        if not bool(known.any()):
            return loss, 1.0
        loss = loss + cross_entropy(logits[known], target[known], reduction="sum")
        return loss, float((logits[known].argmax(-1) == target[known]).float().mean())


class BindingProbe(nn.Module):
    """Reads, after the backbone's first layer, at the place that a fact names, whom the fact is about.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, len(PEOPLE))

    def loss(self, seen: Float[Tensor, "B R D"], lanes: Sequence[Lane], text_start: int) -> Tensor:
        """Summed cross-entropy over the facts that ended in the segment of which the layer's output is given."""
        said = [
            (row, text_start + position, PEOPLE.index(person))
            for row, lane in enumerate(lanes)
            for position, person in lane.said
        ]
        if not said:
            return torch.zeros(())
        rows, positions, people = (torch.tensor(column) for column in zip(*said, strict=True))
        return cross_entropy(self.linear(self.norm(seen[rows, positions])), people, reduction="sum")


def first_layer(model: nn.Module, num_layers: int) -> nn.Module:
    """The first of the stacked layers of a backbone: found as the module list that is as long as the model is deep."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module[0]
    raise ValueError(f"no stack of {num_layers} layers found in {type(model).__name__}")
