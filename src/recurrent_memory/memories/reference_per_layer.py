"""What memory tokens of every layer compute, written for reading. Nothing of the fast code is used.

Sivtsov, Rodkin, Kuzmin, Kuratov, Oseledets: Diagonal Batching Unlocks Parallelism in Recurrent Memory Transformers for
Long Contexts (arXiv:2506.05229), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .reference_layers import LayerwiseReference


class PerLayerReference(LayerwiseReference[Tensor]):
    """A text, read from its beginning. Each layer keeps `[M, D]`.

    Args:
        backbone: The Hugging Face model.
        write_tokens: `[M, E]`, E the width of embeddings, which OPT projects to D.
        initial_memory: `[L, M, D]`.
        cls_and_sep: What an encoder's rows begin and end with; None for a decoder.
    """

    def __init__(
        self,
        backbone: Any,
        write_tokens: Float[Tensor, "M E"],
        initial_memory: Float[Tensor, "L M D"],
        cls_and_sep: tuple[int, int] | None = None,
    ) -> None:
        special = cls_and_sep or ()
        super().__init__(
            backbone, write_tokens, list(initial_memory), special[:1], special[1:], is_causal=cls_and_sep is None
        )

    def before_text(self) -> Float[Tensor, "P E"]:
        """`[CLS] 0 [SEP]`, or the zeros alone: places that every layer fills with its memory."""
        places = torch.zeros_like(self.write_tokens)
        return torch.cat([self.embed(self.prefix), places, self.embed(self.suffix)])

    def recall(self, number: int, hidden: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """The layer's own memory where the one of the layer below would be."""
        row = list(hidden)
        for index, vector in enumerate(self.memory[number]):
            row[len(self.prefix) + index] = vector
        return torch.stack(row)

    def remember(self, number: int, written: Float[Tensor, "M D"]) -> Tensor:
        """What the layer made of the write tokens."""
        return written

    def tensors(self) -> dict[str, Tensor]:
        """`layer_memory`, `[L, M, D]`."""
        return {"layer_memory": torch.stack(self.memory)}

    def detached(self, kept: Tensor) -> Tensor:
        """See `LayerwiseReference.detached`."""
        return kept.detach()
