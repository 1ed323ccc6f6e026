"""Which family a model belongs to. Found by what it is (its architecture's kind), not by a list of class names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ..errors import BackboneError
from .base import Backbone
from .decoder import DecoderBackbone
from .encoder import EncoderBackbone, encoder_special_ids
from .seq2seq import Seq2SeqBackbone, seq2seq_special_ids

HOW_TO_ADD = (
    "a family is added with recurrent_memory.backbones.register_family: "
    "subclass Backbone (CONTRIBUTING.md, «To add a backbone family»)"
)


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models.

    Args:
        name: What `RecurrentMemoryConfig.family` records.
        matches: Whether a configuration belongs to it.
        auto_class: The transformers Auto class that loads it, by task; the first task is the default.
        build: Wraps a loaded model. Gets the model, and the special token ids that were recorded.
        special_ids: The special token ids that its rows need, to be recorded. Gets the model's configuration, its
            tokenizer or None, and the ids that the caller gave.
    """

    name: str
    matches: Callable[[PretrainedConfig], bool]
    auto_class: dict[str, str]
    build: Callable[[PreTrainedModel, dict[str, int]], Backbone]
    special_ids: Callable[[PretrainedConfig, Any, dict[str, int]], dict[str, int]] | None = None


def _is_seq2seq(config: PretrainedConfig) -> bool:
    known = config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return bool(getattr(config, "is_encoder_decoder", False)) and known


def _is_encoder(config: PretrainedConfig) -> bool:
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        return False
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _is_decoder(config: PretrainedConfig) -> bool:
    if getattr(config, "is_encoder_decoder", False) or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    # Without attention heads it is a recurrent model, which has a memory of its own.
    attends = hasattr(config.get_text_config(), "num_attention_heads")
    return attends and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


_FAMILIES: list[Family] = [
    Family(
        "seq2seq",
        _is_seq2seq,
        {"seq2seq-lm": "AutoModelForSeq2SeqLM"},
        lambda model, ids: Seq2SeqBackbone(model, ids["eos_token_id"]),
        seq2seq_special_ids,
    ),
    Family(
        "encoder",
        _is_encoder,
        {"masked-lm": "AutoModelForMaskedLM", "sequence-classification": "AutoModelForSequenceClassification"},
        lambda model, ids: EncoderBackbone(model, ids["cls_token_id"], ids["sep_token_id"]),
        encoder_special_ids,
    ),
    Family("decoder", _is_decoder, {"causal-lm": "AutoModelForCausalLM"}, lambda model, _: DecoderBackbone(model)),
]


def register_family(family: Family) -> None:
    """Add a family, asked before the ones that are there.

    Raises:
        BackboneError: if the name is taken.
    """
    if any(known.name == family.name for known in _FAMILIES):
        raise BackboneError(f"a family named {family.name!r} is already registered; choose another name")
    _FAMILIES.insert(0, family)


def find_family(config: PretrainedConfig) -> Family:
    """The family that a configuration belongs to.

    Raises:
        BackboneError: if none does; says how to add it.
    """
    for family in _FAMILIES:
        if family.matches(config):
            return family
    raise BackboneError(
        f"model type {config.model_type!r} is not a decoder, an encoder or an encoder–decoder known here; {HOW_TO_ADD}"
    )


def family_named(name: str) -> Family:
    """A family by the name that a model folder records.

    Raises:
        BackboneError: if it is not registered here.
    """
    for family in _FAMILIES:
        if family.name == name:
            return family
    raise BackboneError(f"family {name!r} is not registered; import the package that adds it first, or: {HOW_TO_ADD}")


def check_attention(backbone: Backbone) -> None:
    """Look whether the model attends as its family says, on a row of four tokens.

    Raises:
        BackboneError: if it does not take input embeddings, or is causal where it should not be, or the reverse.
    """
    model = backbone.model
    if any(p.device.type == "meta" for p in model.parameters()):
        return
    device = backbone.embedding.weight.device
    ids = torch.arange(4, device=device)[None] % backbone.vocab_size
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            rows = backbone.embed(ids)
            before = _first_of(backbone, rows)
            changed = rows.clone()
            changed[:, -1] = rows[:, -1].flip(-1) + 1
            moved = not torch.equal(before, _first_of(backbone, changed))
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise BackboneError(
            f"{type(model).__name__} does not run on input embeddings ({error}); {HOW_TO_ADD}"
        ) from error
    finally:
        model.train(was_training)
    if before.shape[-1] != backbone.embedding_width:
        raise BackboneError(
            f"{type(model).__name__} takes embeddings of width {backbone.embedding_width} and gives hidden states of width "
            f"{before.shape[-1]}, so what it writes cannot be read again; {HOW_TO_ADD}"
        )
    if moved == backbone.separate_write_block:
        kind = "looks ahead" if moved else "is causal"
        raise BackboneError(f"{type(model).__name__} {kind}, which a {backbone.family} must not; {HOW_TO_ADD}")


def _first_of(backbone: Backbone, rows: Tensor) -> Tensor:
    return backbone.encode(rows, None)[:, 0]
