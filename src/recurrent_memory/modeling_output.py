"""What a model returns."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers.utils import ModelOutput

from .state import MemoryState


@dataclass
class RecurrentMemoryOutput(ModelOutput):
    """Output of `RecurrentMemoryModel.forward`.

    Args:
        loss: The mean cross-entropy over the labels, if there were labels.
        logits: Where they were asked for: `[B, T, V]`, or the kept columns; `[B, num_labels]` for a classifier.
            Zeros at padded positions.
        memory_state: The state after the text.
    """

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "..."] | None = None
    memory_state: MemoryState | None = None


@dataclass
class StepOutput(ModelOutput):
    """Output of `RecurrentMemoryModel.step`.

    Args:
        last_hidden_state: `[B, T, D]` at the text positions of the segment.
        logits: `[B, T, V]`, if they were asked for.
    """

    last_hidden_state: Float[Tensor, "B T D"] | None = None
    logits: Float[Tensor, "B T V"] | None = None
