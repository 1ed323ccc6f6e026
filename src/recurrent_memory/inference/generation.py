"""Generation from a memory: `transformers`' own loops, samplers and stopping criteria over our forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..backbones.encoder import EncoderBackbone, mask_of
from ..backbones.seq2seq import Seq2SeqBackbone
from ..errors import GenerationError, InputError
from ..segments import Segment
from ..state import MemoryState
from .open_state import OpenState

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel


class GenerationWithMemory:
    """What `GenerationMixin` asks of a model, answered with a `MemoryState` in place of a growing cache."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        memory_state: MemoryState | OpenState | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue a text.

        In a decoder, `generate(q, memory_state=model.read(t))` continues `t + q`: the read block and the prompt go in, no
        write block; when the window holds S tokens and one more is there, the S are folded. The keys and values of the
        present window are kept, so that a token costs one position; with `use_cache=False`, and where backbone or memory
        cannot, the window is run anew for each.

        Args:
            inputs: `[B, T]` the prompt, also as `input_ids=`. May be left out if the state has something pending.
            generation_config: As in `transformers`.
            memory_state: What was read before. With a prompt, an `OpenState` goes on in place: what it has computed is
                used, and the next call can go on from there.
            **kwargs: As in `transformers`: `max_new_tokens`, `do_sample`, `streamer`, …

        Returns:
            `[B, T + new]` prompt and new tokens, as `transformers` does (encoder–decoders: the decoder's tokens).

        Raises:
            GenerationError: for beam search, assisted generation, encoders, and an empty prompt with nothing read.
        """
        model = cast("RecurrentMemoryModel", self)
        input_ids = kwargs.pop("input_ids", None)
        input_ids = inputs if input_ids is None else input_ids
        _refuse_unsupported(model, generation_config, kwargs)
        if isinstance(model.view, Seq2SeqBackbone):
            return _generate_seq2seq(model, input_ids, generation_config, memory_state, kwargs)
        if input_ids is None:
            input_ids, memory_state = prompt_from_pending(memory_state)
            if kwargs.get("streamer") is not None:
                kwargs["streamer"] = WithoutPrompt(kwargs["streamer"])
            generated = _super_generate(model, input_ids, generation_config, memory_state, kwargs)
            if isinstance(generated, Tensor):
                return generated[:, 1:]
            generated.sequences = generated.sequences[:, 1:]
            return generated
        if input_ids.ndim == 2 and input_ids.shape[1] == 0:
            raise GenerationError(
                "the prompt is empty; give at least one token, or leave it out to go on from what is pending"
            )
        return _super_generate(model, input_ids, generation_config, memory_state, kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        memory_state: MemoryState | OpenState | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """At first the whole prompt goes in, then each new token alone; only the last one's logits come out."""
        if kwargs.get("prompt_is_read"):
            input_ids, attention_mask = input_ids[:, -1:], None
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "memory_state": memory_state,
            "logits_to_keep": 1,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        if not isinstance(model_kwargs["memory_state"], OpenState):
            model_kwargs["memory_state"] = outputs.memory_state.detach()
        model_kwargs["prompt_is_read"] = True
        return model_kwargs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        if expand_size == 1:
            return input_ids, model_kwargs
        for name, value in model_kwargs.items():
            if isinstance(value, MemoryState):
                model_kwargs[name] = value.index(
                    torch.arange(value.batch_size, device=value.device).repeat_interleave(expand_size)
                )
            elif isinstance(value, OpenState):
                model_kwargs[name] = value.repeated(expand_size)
            elif isinstance(value, Tensor):
                model_kwargs[name] = value.repeat_interleave(expand_size, dim=0)
        return input_ids.repeat_interleave(expand_size, dim=0) if input_ids is not None else None, model_kwargs

    def _supports_default_dynamic_cache(self) -> bool:
        return False


class WithoutPrompt:
    """A streamer that is not shown the first thing that is put: a prompt that nobody gave."""

    def __init__(self, streamer: Any) -> None:
        self._streamer, self._is_first = streamer, True

    def put(self, value: Tensor) -> None:
        """Token ids."""
        if not self._is_first or getattr(self._streamer, "skip_prompt", False):  # which skips the first by itself
            self._streamer.put(value)
        self._is_first = False

    def end(self) -> None:
        """Nothing more comes."""
        self._streamer.end()


def _refuse_unsupported(model: RecurrentMemoryModel, config: GenerationConfig | None, kwargs: dict[str, Any]) -> None:
    if isinstance(model.view, EncoderBackbone):
        raise GenerationError("an encoder does not generate text; use forward, which gives its task's logits")
    settings = config or model.generation_config

    def setting(name: str) -> Any:
        return kwargs.get(name, getattr(settings, name, None))

    beams = setting("num_beams") or 1
    if beams > 1:
        raise GenerationError(
            f"num_beams={beams} is not supported: a memory is not reordered between beams; use num_beams=1, or do_sample=True"
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "past_key_values", "inputs_embeds", "custom_generate"):
        if setting(name) is not None:
            raise GenerationError(f"{name} is not supported with a recurrent memory; leave it out")


def prompt_from_pending(state: MemoryState | OpenState | None) -> tuple[Tensor, MemoryState]:
    """The last pending token as the prompt, and the state before it: what follows is the same.

    Raises:
        GenerationError: if there is a row with nothing pending.
    """
    state = state.state if isinstance(state, OpenState) else state
    if state is None or not bool((state.pending_lengths > 0).all()):
        raise GenerationError("nothing to continue: give a prompt, or a memory_state with text pending in every row")
    last = state.pending_lengths - 1
    prompt = state.pending.gather(1, last[:, None])
    return prompt, state.with_pending(state.pending, last).advanced(-torch.ones_like(last))


def _super_generate(
    model: RecurrentMemoryModel,
    input_ids: Tensor,
    config: GenerationConfig | None,
    state: MemoryState | OpenState | None,
    kwargs: dict[str, Any],
) -> Any:
    from transformers import GenerationMixin

    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    mask = kwargs.pop("attention_mask", None)
    mask = torch.ones_like(input_ids) if mask is None else mask
    if bool((mask.sum(1) == 0).any()):
        raise InputError("a row of the prompt is empty; every row needs at least one token to continue")
    if bool((mask[:, -1] == 0).any()):
        raise GenerationError(
            "the prompt is padded on the right; pad on the left (tokenizer.padding_side = 'left') to generate"
        )
    settings = config or model.generation_config
    wants_cache = kwargs.pop("use_cache", getattr(settings, "use_cache", None)) is not False
    state = state if state is not None else model.initial_state(input_ids.shape[0])
    if not isinstance(state, OpenState):
        model.check_state(state)
        state = OpenState(model, state) if wants_cache and OpenState.is_possible(model) else state
    elif state.model is not model:
        raise GenerationError(
            "memory_state is held open by another model; open it with this one: OpenState(model, state)"
        )
    return cast(Any, GenerationMixin).generate(  # whose own cache would keep the whole text: it gets none
        model, input_ids, generation_config=config, attention_mask=mask, memory_state=state, use_cache=False, **kwargs
    )


def _generate_seq2seq(
    model: RecurrentMemoryModel,
    input_ids: Tensor | None,
    config: GenerationConfig | None,
    state: MemoryState | OpenState | None,
    kwargs: dict[str, Any],
) -> Any:
    state = state.state if isinstance(state, OpenState) else state
    mask = kwargs.pop("attention_mask", None)
    if input_ids is not None:
        state = model.read(input_ids, mask, state)
    if state is None:
        raise GenerationError("nothing to answer to: give input_ids, or a memory_state")
    with torch.no_grad():
        segment = Segment(state.pending[:, : int(state.pending_lengths.max())], state.pending_lengths)
        encoded, rows = model.memory.look(model.view, segment, state.tensors)
    from transformers.modeling_outputs import BaseModelOutput

    return cast(Any, model.backbone).generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        attention_mask=mask_of(encoded, rows.lengths),
        generation_config=config or model.generation_config,
        **kwargs,
    )
