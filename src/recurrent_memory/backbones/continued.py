"""A decoder that is given the same row again and again, each time longer, and computes only what is new of it."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .decoder import DecoderBackbone

_CACHED_LAYERS = frozenset({"full_attention", "sliding_attention"})


class ContinuedDecoder(DecoderBackbone):
    """Keeps the keys and values of a row, and its last hidden states, in `transformers`' own cache.

    Every row that `encode` is given begins as the one before ended. Under a causal mask what was computed of it then is
    what it would be now. For rows of one length, without gradients.

    Args:
        model: The Hugging Face model, with its head.
        room: Positions of the longest row.
    """

    is_fast: bool = False  # all that it computes is kept, so all has to be computed

    def __init__(self, model: PreTrainedModel, room: int) -> None:
        super().__init__(model)
        self._cache = Cache(layer_class_to_replicate=partial(_Room, room))  # pyright: ignore[reportArgumentType]
        self._hidden: Tensor | None = None

    def encode(self, rows: Float[Tensor, "B R D"], lengths: Int[Tensor, " B"] | None) -> Float[Tensor, "B R D"]:
        """See `Backbone.encode`."""
        assert lengths is None, "rows of one length"
        if self._hidden is not None and rows.shape[1] == self.num_known:
            return self._hidden
        new: Tensor = self.model.base_model(
            inputs_embeds=rows[:, self.num_known :], past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        self._hidden = new if self._hidden is None else torch.cat([self._hidden, new], 1)
        self.num_known = rows.shape[1]
        return self._hidden

    @staticmethod
    def is_possible(model: PreTrainedModel) -> bool:
        """Whether the model's layers are all attention, which keys and values are enough to go on from."""
        body = model.base_model
        layer_types = getattr(model.config.get_text_config(), "layer_types", None) or ()
        return (
            "past_key_values" in inspect.signature(body.forward).parameters
            and not getattr(body, "_is_stateful", False)
            and isinstance(model, GenerationMixin)
            and cast(Any, model)._supports_default_dynamic_cache()
            and _CACHED_LAYERS.issuperset(layer_types)
        )


class _Room(DynamicLayer):
    """A layer's keys and values in room for the whole row: new ones are written behind the others, nothing is copied."""

    def __init__(self, room: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._room = room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._all_keys, self._all_values = self._empty(key_states), self._empty(value_states)
        self.keys, self.values = self._all_keys[..., :0, :], self._all_values[..., :0, :]
        self.is_initialized = True

    def _empty(self, like: Float[Tensor, "B H R d"]) -> Tensor:
        return like.new_empty(*like.shape[:-2], self._room, like.shape[-1])

    def update(
        self, key_states: Float[Tensor, "B H R d"], value_states: Float[Tensor, "B H R d"], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self._all_keys[..., start:end, :] = key_states
        self._all_values[..., start:end, :] = value_states
        self.keys, self.values = self._all_keys[..., :end, :], self._all_values[..., :end, :]
        return self.keys, self.values
