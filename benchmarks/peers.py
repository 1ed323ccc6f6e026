"""Other ways to read a long text, each of the size of the model that is measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from recurrent_memory import RecurrentMemoryModel

from .models import mamba_like, mistral_like

PACKAGE = "recurrent-memory-transformer-pytorch"


@dataclass(frozen=True)
class Peer:
    """A way to read a text.

    Args:
        name: In tables and plots.
        read: Reads `[1, T]`.
        power: By how much its time grows with the length: 1, linear; 2, with its square.
        bytes_of: Memory that it needs for a text of so many tokens.
        limit: Longest text that it can read; None: any.
    """

    name: str
    read: Callable[[Tensor], object]
    power: float = 1.0
    bytes_of: Callable[[int], float] = lambda _: 0.0
    limit: int | None = None


def kv_bytes(model: RecurrentMemoryModel, tokens: int) -> int:
    """Of the keys and values of so many tokens."""
    text = model.backbone.config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = kv_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return 2 * tokens * text.num_hidden_layers * width * next(model.parameters()).element_size()


def full_attention(model: RecurrentMemoryModel) -> Peer:
    """The same backbone over the whole text at once, its keys and values kept."""
    body = model.backbone.base_model
    text = model.backbone.config.get_text_config()

    @torch.no_grad()
    def read(ids: Tensor) -> object:
        return body(input_ids=ids, use_cache=True).past_key_values

    return Peer(
        "full attention, KV cache",
        read,
        power=2.0,
        bytes_of=lambda tokens: kv_bytes(model, tokens) + 16 * tokens * text.intermediate_size,
        limit=model.view.max_row_length(),
    )


def sliding_window(model: RecurrentMemoryModel) -> Peer:
    """A decoder of the same shape in which each position sees the S before it, read S at a time."""
    window = model.memory_config.segment_length
    other = mistral_like(model.backbone, window)

    @torch.no_grad()
    def read(ids: Tensor) -> object:
        cache = DynamicCache(config=other.config)
        for text in ids.split(window, dim=1):
            other.base_model(input_ids=text, past_key_values=cache, use_cache=True)
        return cache

    return Peer("sliding window", read)


def mamba(model: RecurrentMemoryModel) -> Peer:
    """Mamba of `transformers` with as many parameters."""
    other = mamba_like(model.backbone)
    each = 4 * 4 * other.config.intermediate_size * other.config.state_size

    @torch.no_grad()
    def read(ids: Tensor) -> object:
        return other.base_model(input_ids=ids, use_cache=True).cache_params

    return Peer("Mamba", read, bytes_of=lambda tokens: each * tokens)


def lucidrains(model: RecurrentMemoryModel) -> Peer | str:
    """The package of that name with the same width, depth, segments and memory; or why it is not there."""
    if importlib.util.find_spec("recurrent_memory_transformer_pytorch") is None:
        return f"{PACKAGE} is not installed; pip install {PACKAGE}"
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

    text, memory = model.backbone.config.get_text_config(), model.memory_config
    other = RecurrentMemoryTransformer(
        text.hidden_size,
        num_tokens=text.vocab_size,
        depth=text.num_hidden_layers,
        num_memory_tokens=memory.num_memory_tokens,
        seq_len=memory.segment_length,
        heads=text.num_attention_heads,
        dim_head=text.hidden_size // text.num_attention_heads,
        use_xl_memories=False,
        num_residual_streams=1,
    )
    other = other.to(model.device, model.dtype).eval()

    @torch.no_grad()
    def read(ids: Tensor) -> object:
        memories = None
        for segment in ids.split(memory.segment_length, dim=1):
            _, memories, _ = other(segment, memories)
        return memories

    return Peer(PACKAGE, read)
