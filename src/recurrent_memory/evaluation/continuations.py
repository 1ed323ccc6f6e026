"""How probable the continuations of a text are: every token once, given all that was read before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..backbones.encoder import EncoderBackbone
from ..backbones.seq2seq import Seq2SeqBackbone
from ..errors import GenerationError, InputError
from ..head_loss import at_least_float32
from ..inference.reader import evaluating
from ..state import MemoryState

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

_LOGITS_AT_A_TIME = 2**26  # a quarter of a gigabyte in float32


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before a continuation.

    Args:
        folded: Token ids that are read first, and folded to the last one.
        open: Token ids in a fresh segment after them, or from the text's start on where nothing is folded. At least one.
    """

    folded: tuple[int, ...]
    open: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Of a continuation.

    Args:
        log_probability: The sum over its tokens, natural.
        is_greedy: Whether every token of it is the most probable one.
    """

    log_probability: float
    is_greedy: bool


def check_writes_text(model: RecurrentMemoryModel) -> None:
    """Refuse a model that does not continue texts.

    Raises:
        GenerationError: if it is an encoder or an encoder–decoder.
    """
    if isinstance(model.view, EncoderBackbone | Seq2SeqBackbone):
        raise GenerationError(f"a model of the family {model.view.family!r} does not continue a text; use a decoder")


@torch.no_grad()
def read_prompts(model: RecurrentMemoryModel, prompts: Sequence[Prompt]) -> MemoryState:
    """Read prompts, as the rows of one state; they may be of any lengths.

    Raises:
        InputError: if one has no open token, or one out of the vocabulary.
    """
    if not all(prompt.open for prompt in prompts):
        raise InputError("a prompt has nothing open to continue; give at least one token")
    state = model.initial_state(len(prompts))
    with evaluating(model):
        if any(prompt.folded for prompt in prompts):
            state = model.fold(model.read(*_padded([prompt.folded for prompt in prompts]), state))
        return model.read(*_padded([prompt.open for prompt in prompts]), state)


@torch.no_grad()
def score(model: RecurrentMemoryModel, state: MemoryState, continuations: Sequence[Sequence[int]]) -> list[Score]:
    """How probable continuations are, each of its own row.

    They may be of any length: no more logits than of a segment, or of a fixed number of them, are there at a time.

    Args:
        model: The decoder that wrote the state.
        state: What was read, with something pending in every row; see `read_prompts`.
        continuations: Token ids, of one continuation for each row.

    Raises:
        GenerationError: if the model does not continue texts.
        InputError: if one is empty, their number is not that of the rows, or nothing is pending.

    Example:
        >>> state = read_prompts(model, [Prompt((), (5, 6, 7))])
        >>> score(model, state.index([0, 0]), [[8], [9, 10]])
        [Score(log_probability=-1.5, is_greedy=True), Score(log_probability=-7.25, is_greedy=False)]
    """
    check_writes_text(model)
    if len(continuations) != state.batch_size or not all(continuations):
        raise InputError(
            f"{len(continuations)} continuations for a state of {state.batch_size} rows; give one for each, none of them empty"
        )
    targets, inside = (tensor.to(state.device) for tensor in _padded(continuations))
    last, state = _without_last(state)
    inputs = torch.cat([last, targets[:, :-1]], 1)
    total = torch.zeros(len(continuations), dtype=torch.float64)
    is_greedy = torch.ones(len(continuations), dtype=torch.bool)
    width = _columns_at_a_time(model, len(continuations))
    with evaluating(model):
        for start in range(0, targets.shape[1], width):
            part = slice(start, start + width)
            out = model(input_ids=inputs[:, part], attention_mask=inside[:, part], memory_state=state)
            state = out.memory_state
            logits, wanted, counts = at_least_float32(out.logits), targets[:, part], inside[:, part]
            log_probability = logits.gather(2, wanted[..., None])[..., 0] - logits.logsumexp(2)
            total += log_probability.masked_fill(~counts, 0.0).cpu().double().sum(1)
            is_greedy &= ((logits.argmax(2) == wanted) | ~counts).all(1).cpu()
    return [Score(*row) for row in zip(total.tolist(), is_greedy.tolist(), strict=True)]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def _without_last(state: MemoryState) -> tuple[Int[Tensor, "B 1"], MemoryState]:
    """The last pending token, which predicts what comes next, and the state before it."""
    if not bool((state.pending_lengths > 0).all()):
        raise InputError("memory_state: nothing is pending in some row, so nothing can be continued; read text into it")
    last = state.pending_lengths - 1
    return state.pending.gather(1, last[:, None]), state.with_pending(state.pending, last).advanced(
        -torch.ones_like(last)
    )


def _columns_at_a_time(model: RecurrentMemoryModel, rows: int) -> int:
    length = model.memory_config.segment_length
    return max(1, _LOGITS_AT_A_TIME // (rows * model.view.vocab_size * length)) * length
