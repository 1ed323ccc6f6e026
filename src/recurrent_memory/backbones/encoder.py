"""Encoders: BERT, RoBERTa, DistilBERT, ModernBERT and models built alike."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BackboneError
from .base import Backbone, config_limit


class EncoderBackbone(Backbone):
    """`[CLS] M [SEP] x [SEP]`: one block of memory, read and written, under full attention.

    Args:
        model: A model with a head for masked language modelling or sequence classification.
        cls_token_id: Begins a row.
        sep_token_id: Ends the memory, and the text.
    """

    family: ClassVar[str] = "encoder"
    separate_write_block: ClassVar[bool] = False
    strips_special_tokens: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, cls_token_id: int, sep_token_id: int) -> None:
        super().__init__(model, prefix_ids=(cls_token_id,), separator_ids=(sep_token_id,), suffix_ids=(sep_token_id,))

    @property
    def loss_type(self) -> str:
        """See `Backbone.loss_type`."""
        return "ForSequenceClassification" if self.classifies else "ForMaskedLM"

    @property
    def classifies(self) -> bool:
        """Whether the head classifies whole texts, rather than tokens."""
        return not hasattr(self.model, "get_output_embeddings") or self.model.get_output_embeddings() is None

    def encode(self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None) -> Float[Tensor, "B R D"]:
        """See `Backbone.encode`."""
        return self.body(inputs_embeds=rows, attention_mask=mask_of(rows, lengths)).last_hidden_state

    def classify(self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None, labels: Tensor | None) -> Any:
        """The output of the model with its classification head: `.logits` `[B, num_labels]`, `.loss` where labels are."""
        return self.model(inputs_embeds=rows, attention_mask=mask_of(rows, lengths), labels=labels)

    def head(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """See `Backbone.head`; only a masked language model has logits for tokens."""
        if self.classifies:
            raise BackboneError(
                "a classifier has logits for a text, not for its tokens; call the model, which gives them"
            )
        return super().head(hidden)

    def special_ids(self) -> tuple[int, ...]:
        """[CLS], [SEP] and padding: the row brings its own."""
        pad = getattr(self.config, "pad_token_id", None)
        return tuple(dict.fromkeys([*self.prefix_ids, *self.suffix_ids, *([pad] if isinstance(pad, int) else [])]))

    def max_row_length(self) -> int | None:
        """Learned positions count from past the padding index (RoBERTa); a local window sees half to each side."""
        limits: list[int] = []
        if (positions := config_limit(self.config)) is not None:
            limits.append(positions)
        table = _position_table(self.model)
        if table is not None and table.padding_idx is not None:
            limits.append(table.num_embeddings - table.padding_idx - 1)
        local = getattr(self.config, "local_attention", None)
        if isinstance(local, int) and local > 0:
            limits.append(local // 2 + 1)
        return min(limits) if limits else None


def mask_of(rows: Tensor, lengths: Tensor | None) -> Tensor | None:
    """`[B, R]` ones at real positions, or None where all are real."""
    if lengths is None:
        return None
    return (torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]).long()


def _position_table(model: PreTrainedModel) -> nn.Embedding | None:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module
    return None


def encoder_special_ids(config: Any, tokenizer: Any, given: dict[str, int]) -> dict[str, int]:
    """[CLS] and [SEP]: as given, else the tokenizer's, else the configuration's.

    Raises:
        BackboneError: if none knows.
    """
    found = dict(given)
    for name, other in (("cls_token_id", "bos_token_id"), ("sep_token_id", "eos_token_id")):
        values = [getattr(source, key, None) for source in (tokenizer, config) for key in (name, other)]
        known = next((value for value in values if isinstance(value, int)), None)
        if name not in found and known is not None:
            found[name] = known
    if len(found) < 2:
        raise BackboneError(
            "the [CLS] and [SEP] ids of this encoder are not known; give from_backbone its tokenizer, "
            "or cls_token_id=… and sep_token_id=…"
        )
    return found
