"""Encoder–decoders: T5 and models built alike."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ..errors import BackboneError
from .base import Backbone, config_limit
from .encoder import mask_of


class Seq2SeqBackbone(Backbone):
    """`[M ; x ; </s>]` in the encoder; the decoder attends to the last segment's encoder output, memory included."""

    family: ClassVar[str] = "seq2seq"
    separate_write_block: ClassVar[bool] = False
    strips_special_tokens: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, eos_token_id: int) -> None:
        super().__init__(model, suffix_ids=(eos_token_id,))
        self.body = model.get_encoder()

    def encode(self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None) -> Float[Tensor, "B R D"]:
        """See `Backbone.encode`; the encoder alone."""
        return self.body(inputs_embeds=rows, attention_mask=mask_of(rows, lengths)).last_hidden_state

    def head(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """An encoder's output has no head of its own."""
        raise BackboneError(
            "an encoder–decoder has no logits at its encoder's positions; pass labels to get the decoder's"
        )

    def decode(self, encoded: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None, **inputs: Any) -> Any:
        """The decoder over the last segment's encoder output: what the model returns for `labels` or `decoder_input_ids`."""
        output = BaseModelOutput(last_hidden_state=encoded)  # pyright: ignore[reportArgumentType]
        return self.model(encoder_outputs=output, attention_mask=mask_of(encoded, lengths), **inputs)

    def special_ids(self) -> tuple[int, ...]:
        """</s> and padding: the row brings its own."""
        pad = getattr(self.config, "pad_token_id", None)
        return tuple(dict.fromkeys([*self.suffix_ids, *([pad] if isinstance(pad, int) else [])]))

    def max_row_length(self) -> int | None:
        """None with relative positions (T5), else the model's positions."""
        if hasattr(self.config, "relative_attention_num_buckets"):
            return None
        return config_limit(self.config)


def seq2seq_special_ids(config: Any, tokenizer: Any, given: dict[str, int]) -> dict[str, int]:
    """</s>, of the configuration, else the tokenizer's.

    Raises:
        BackboneError: if neither knows it.
    """
    del given
    for source in (config, tokenizer):
        if isinstance(eos := getattr(source, "eos_token_id", None), int):
            return {"eos_token_id": eos}
    raise BackboneError("this encoder–decoder has no eos_token_id; set config.eos_token_id before from_backbone")
