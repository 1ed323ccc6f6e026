"""Decoders: GPT-2, OPT, GPT-NeoX, Llama, Mistral, Qwen, Gemma, Phi and every causal language model built alike."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig

from .base import Backbone, config_limit


class DecoderBackbone(Backbone):
    """`[M ; x ; M]` under the causal mask: a read block, the text, a write block."""

    family: ClassVar[str] = "decoder"
    separate_write_block: ClassVar[bool] = True

    def encode(self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None) -> Float[Tensor, "B R D"]:
        """See `Backbone.encode`. Rows are padded on the right, which a causal mask hides: none is needed."""
        del lengths
        return self.body(inputs_embeds=rows, use_cache=False).last_hidden_state

    def continued(self, room: int) -> Backbone | None:
        """See `Backbone.continued`. A family made of this one may run its rows in another way: it says so itself."""
        from .continued import ContinuedDecoder

        is_possible = type(self) is DecoderBackbone and ContinuedDecoder.is_possible(self.model)
        return ContinuedDecoder(self.model, room) if is_possible else None

    def max_row_length(self) -> int | None:
        """Positions, and the smallest sliding window where layers have one."""
        limits = [limit for limit in (config_limit(self.config), sliding_window(self.config)) if limit]
        return min(limits) if limits else None


def sliding_window(config: PretrainedConfig) -> int | None:
    """The window of the layers that slide, or None where no layer does."""
    config = config.get_text_config()
    size = getattr(config, "sliding_window", None)
    if not isinstance(size, int) or size <= 0:
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    layer_types = getattr(config, "layer_types", None)
    return size if layer_types is None or any("sliding" in kind for kind in layer_types) else None
