"""Text of any length from a memory, in constant RAM: a stretch is generated, read into the memory, and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..backbones.encoder import EncoderBackbone
from ..backbones.seq2seq import Seq2SeqBackbone
from ..errors import ConfigError, GenerationError
from ..state import MemoryState
from .detokenize import IncrementalDecoder, eos_ids
from .generation import WithoutPrompt, prompt_from_pending
from .open_state import OpenState
from .reader import evaluating

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

TOKENS_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Args:
        greedy: Always the most probable one.
        temperature: Above 1, more daring; below, less.
        top_k: Only among the k most probable; None: among all.
        top_p: Only among the most probable that together have this probability.

    Raises:
        ConfigError: if a value is out of range, or there is something to choose from greedily.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"temperature={self.temperature} must be above 0; for the most probable token, use --greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.greedy and (self.temperature, self.top_k, self.top_p) != (1.0, None, 1.0):
            raise ConfigError("greedy takes the most probable token; leave out temperature, top_k and top_p")


class _Tap:
    """A `transformers` streamer that hands on each new token."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take

    def put(self, value: torch.Tensor) -> None:
        self._take(int(value))

    def end(self) -> None:
        pass


def write_text(
    model: RecurrentMemoryModel,
    tokenizer: Any,
    state: MemoryState,
    emit: Callable[[str], None],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    ignore_eos: bool = False,
) -> tuple[int, MemoryState]:
    """Continue the text that a state has read, until the model ends it.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
        state: One row, with something pending, as after every reading.
        emit: Gets the text, in whole characters, as it is made.
        max_new_tokens: Where to stop at the latest; None: nowhere.
        sampling: How tokens are chosen.
        ignore_eos: Go on where the model ends the text.

    Returns:
        How many tokens were made, and the state after them.

    Raises:
        GenerationError: if there is nothing to continue, or the model does not write text.
        ConfigError: if `max_new_tokens` is not positive.
    """
    _check(model, state, max_new_tokens)
    pending = state.pending[0, : int(state.pending_lengths[0])].tolist()
    decoder = IncrementalDecoder(tokenizer, pending)
    ends: frozenset[int] = frozenset() if ignore_eos else eos_ids(model, tokenizer)
    made, state = write_tokens(
        model,
        state,
        lambda token: emit(decoder.push(token)) if token not in ends else None,
        _generation_config(sampling or Sampling(), ends, tokenizer),
        max_new_tokens=max_new_tokens,
    )
    emit(decoder.flush())
    return made, state


def write_tokens(
    model: RecurrentMemoryModel,
    state: MemoryState,
    take: Callable[[int], None],
    config: Any,
    *,
    max_new_tokens: int | None = None,
) -> tuple[int, MemoryState]:
    """`write_text` without its text: tokens, until one that ends it.

    Args:
        model: The decoder.
        state: One row, with something pending, as after every reading.
        take: Gets each token as it is made.
        config: A `GenerationConfig`: how tokens are chosen, and in a list of `eos_token_id` which of them end it.
        max_new_tokens: Where to stop at the latest; None: nowhere.

    Returns:
        How many tokens were made, and the state after them.

    Raises:
        GenerationError: if there is nothing to continue, or the model does not write text.
        ConfigError: if `max_new_tokens` is not positive.
    """
    _check(model, state, max_new_tokens)
    ends: frozenset[int] = frozenset(config.eos_token_id or ())
    made = 0
    with evaluating(model):
        prompt, before = prompt_from_pending(state)
        opened = OpenState(model, before) if OpenState.is_possible(model) else None
        while True:
            wanted = min(TOKENS_AT_A_TIME, max_new_tokens - made) if max_new_tokens is not None else TOKENS_AT_A_TIME
            tap = WithoutPrompt(_Tap(take))
            new = model.generate(prompt, config, opened or before, max_new_tokens=wanted, streamer=tap)
            made += new.shape[1] - 1
            if made == max_new_tokens or int(new[0, -1]) in ends:
                break
            before = opened.state if opened is not None else model.read(new[:, :-1], memory_state=before)
            prompt = new[:, -1:]
        return made, model.read(new, memory_state=before)


def _check(model: RecurrentMemoryModel, state: MemoryState, max_new_tokens: int | None) -> None:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if isinstance(model.view, EncoderBackbone | Seq2SeqBackbone):
        raise GenerationError(f"a model of the family {model.view.family!r} does not continue a text; use a decoder")
    if state.batch_size != 1:
        raise GenerationError(f"the state holds {state.batch_size} texts; choose one of them: state[0]")


def _generation_config(sampling: Sampling, ends: frozenset[int], tokenizer: Any) -> Any:
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    choice = (
        {}
        if sampling.greedy
        else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    )
    return GenerationConfig(
        do_sample=not sampling.greedy, eos_token_id=sorted(ends) or None, pad_token_id=pad, **choice
    )
