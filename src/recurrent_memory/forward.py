"""The forward pass of each family: fold every full segment, predict where it is asked for, a segment at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from .backbones.encoder import EncoderBackbone
from .backbones.seq2seq import Seq2SeqBackbone
from .errors import InputError
from .head_loss import at_least_float32, head_losses
from .modeling_output import RecurrentMemoryOutput
from .segments import Aligned, Segment, num_folded, rest_of, window
from .state import MemoryState

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel

IGNORE = -100
Fold = Callable[[Segment, MemoryState], tuple[Tensor, MemoryState]]


def run_forward(
    model: RecurrentMemoryModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    memory_state: MemoryState | None,
    logits_to_keep: int | Tensor | None,
    schedule: str,
    kwargs: dict[str, Any],
) -> RecurrentMemoryOutput:
    """See `RecurrentMemoryModel.forward`."""
    new, text, state = model.new_text(input_ids, attention_mask, memory_state)
    view = model.view
    if isinstance(view, Seq2SeqBackbone):
        state = model.fold_full(text, state, schedule).advanced(new.lengths)
        return _scaled(_decode(model, view, state, labels, kwargs), labels, kwargs.get("num_items_in_batch"))
    if isinstance(view, EncoderBackbone) and view.classifies:
        state = model.fold_full(text, state, schedule).advanced(new.lengths)
        return _scaled(_classify(model, view, state, labels), labels, kwargs.get("num_items_in_batch"))
    width = input_ids.shape[-1]
    columns = kept_columns(logits_to_keep, width, none=model.training and labels is not None).to(text.input_ids.device)
    if labels is not None:
        labels = labels.to(text.input_ids.device)
        if labels.ndim == 1:
            labels = labels[None]
        if labels.shape != (text.input_ids.shape[0], width):
            raise InputError(
                f"labels has the shape {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}; they must be equal"
            )
    kept, order = columns.unique(return_inverse=True)
    output = _predict(model, new, text, state, labels, kept, width, schedule, kwargs.get("num_items_in_batch"))
    if output.logits is not None and not torch.equal(kept, columns):
        output.logits = output.logits[:, order]
    return output


def kept_columns(logits_to_keep: int | Tensor | None, width: int, *, none: bool) -> Int[Tensor, " K"]:
    """The columns of `input_ids` to give logits for, in order.

    Raises:
        InputError: if it is neither an int of at least 0, nor indices in range, nor a `[width]` boolean mask.
    """
    every = torch.arange(width)
    if logits_to_keep is None:
        return every[:0] if none else every
    if isinstance(logits_to_keep, int) and not isinstance(logits_to_keep, bool):
        if logits_to_keep < 0:
            raise InputError(f"logits_to_keep={logits_to_keep} must be at least 0 (0 keeps all)")
        return every if logits_to_keep == 0 else every[-logits_to_keep:]
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.ndim == 1 and not logits_to_keep.is_floating_point():
        try:
            return every[logits_to_keep.cpu()]
        except IndexError as error:
            raise InputError(f"logits_to_keep is out of range of {width} new tokens: {error}") from error
    raise InputError("logits_to_keep must be an int, a tensor of indices, or a boolean mask over the new tokens")


def _predict(
    model: RecurrentMemoryModel,
    new: Aligned,
    text: Segment,
    state: MemoryState,
    labels: Tensor | None,
    columns: Int[Tensor, " K"],
    width: int,
    schedule: str,
    num_items: Any,
) -> RecurrentMemoryOutput:
    view, length, starts = model.view, model.memory_config.segment_length, state.pending_lengths
    targets = targets_of(new, text, starts, labels, shift=int(view.separate_write_block))
    slots = _slots(new, text, starts, columns, width)
    folds = num_folded(text.lengths, length)
    pieces: list[tuple[Tensor, Tensor]] = []
    losses: list[Tensor] = []
    num_segments = -(-int(text.lengths.max()) // length) if text.lengths.numel() else 0
    folding_all = model.folding_on_diagonals(text, state, schedule, with_hidden=True)
    fold = model.fold_segment if folding_all is None else folding_all.fold_segment
    for index in range(num_segments):
        segment = window(text, index * length, length)
        span = slice(index * length, index * length + segment.input_ids.shape[1])
        target, slot = targets[:, span], slots[:, span]
        folding = index < folds
        wanted, labelled = slot >= 0, target != IGNORE
        hidden, state = read_segment(model, segment, folding, (wanted | labelled).any(1), state, fold)
        if bool(wanted.any()):
            logits = view.head(hidden[wanted])
            pieces.append((logits, slot[wanted]))
            if labels is not None:
                targets_here = target[wanted]
                losses.append(
                    cross_entropy(at_least_float32(logits), targets_here, ignore_index=IGNORE, reduction="sum")
                )
            labelled = labelled & ~wanted
        if bool(labelled.any()):
            losses.append(head_losses(view, hidden[labelled], target[labelled])[0].sum())
    state = state.with_pending(*rest_of(text, folds * length)).advanced(new.lengths)
    loss = None
    if labels is not None:
        count = num_items if num_items is not None else int((targets != IGNORE).sum())
        total = torch.stack(losses).sum() if losses else state.tensors[next(iter(state.tensors))].sum() * 0.0
        loss = total / (count.to(total.device) if isinstance(count, Tensor) else max(int(count), 1))
    return RecurrentMemoryOutput(loss=loss, logits=_assemble(model, pieces, new, columns), memory_state=state)


def read_segment(
    model: RecurrentMemoryModel,
    segment: Segment,
    folding: Bool[Tensor, " B"],
    asked: Bool[Tensor, " B"],
    state: MemoryState,
    fold: Fold | None = None,
) -> tuple[Float[Tensor, "B T D"], MemoryState]:
    """Read a segment of every row: fold it where another follows it, else look at it where something is asked.

    Args:
        model: The model.
        segment: 0…S tokens for every row.
        folding: The rows that are folded.
        asked: The rows in which something is asked.
        state: The state before.
        fold: What folds a segment in the rows that have one; by default `model.fold_segment`.

    Returns:
        The hidden states at the text positions, zeros in rows that were not read, and the state after.
    """
    hidden, after = (fold or model.fold_segment)(Segment(segment.input_ids, segment.lengths * folding), state)
    looking = Segment(segment.input_ids, segment.lengths * ~folding * asked)
    rows = (looking.lengths > 0).nonzero()[:, 0]
    if rows.numel():
        some = _look(model, looking.rows(rows), after.index(rows))
        full = torch.nn.functional.pad(some, (0, 0, 0, segment.input_ids.shape[1] - some.shape[1]))
        hidden = full if rows.numel() == len(asked) else hidden.to(full.dtype).index_copy(0, rows, full)
    return hidden, after


def _look(model: RecurrentMemoryModel, segment: Segment, state: MemoryState) -> Float[Tensor, "B T D"]:
    hidden, rows = model.memory.look(model.view, segment, state.tensors)
    return rows.text_of(hidden)


def targets_of(new: Aligned, text: Segment, starts: Tensor, labels: Tensor | None, shift: int) -> Int[Tensor, "B T"]:
    """For every position of the text, pending included, the label that it is to predict."""
    targets = torch.full_like(text.input_ids, IGNORE)
    if labels is None:
        return targets
    aligned = labels.gather(1, new.columns)
    offset = torch.arange(aligned.shape[1], device=aligned.device)
    positions = starts[:, None] + offset - shift
    valid = (offset < new.lengths[:, None]) & (positions >= 0)
    rows = torch.arange(targets.shape[0], device=targets.device)[:, None].expand_as(valid)
    targets[rows[valid], positions[valid]] = aligned[valid]
    return targets


def _slots(new: Aligned, text: Segment, starts: Tensor, columns: Tensor, width: int) -> Int[Tensor, "B T"]:
    """For every position of the text, where its logits go in the flattened output; -1: nowhere."""
    slots = torch.full_like(text.input_ids, -1)
    if not columns.numel():
        return slots
    order = torch.full((width,), -1, dtype=torch.long, device=slots.device)
    order[columns] = torch.arange(columns.numel(), device=slots.device)
    came_from = new.columns
    offset = torch.arange(came_from.shape[1], device=slots.device)
    rows = torch.arange(slots.shape[0], device=slots.device)[:, None].expand_as(came_from)
    wanted = order[came_from]
    valid: Bool[Tensor, "B T"] = (offset < new.lengths[:, None]) & (wanted >= 0)
    slots[rows[valid], (starts[:, None] + offset)[valid]] = (rows * columns.numel() + wanted)[valid]
    return slots


def _assemble(
    model: RecurrentMemoryModel, pieces: list[tuple[Tensor, Tensor]], new: Aligned, columns: Tensor
) -> Tensor | None:
    batch, count = new.lengths.shape[0], columns.numel()
    if not count:
        return None
    vocab = pieces[0][0].shape[1] if pieces else model.view.vocab_size
    values = torch.cat([logits for logits, _ in pieces]) if pieces else torch.zeros(0, vocab, device=new.lengths.device)
    where = torch.cat([slot for _, slot in pieces]) if pieces else new.lengths[:0]
    flat = torch.zeros(batch * count, vocab, dtype=values.dtype, device=values.device)
    return flat.index_copy(0, where, values).view(batch, count, vocab)


def _scaled(output: RecurrentMemoryOutput, labels: Tensor | None, num_items: Any) -> RecurrentMemoryOutput:
    """With the loss, a mean over the labels here, made the sum over them divided by `num_items`."""
    if labels is not None and num_items is not None and output.loss is not None and output.logits is not None:
        count = int((labels != IGNORE).sum())
        output.loss = output.loss * (count / num_items) if count else output.logits.sum() * 0.0
    return output


def _pending_segment(state: MemoryState) -> Segment:
    width = int(state.pending_lengths.max()) if state.pending_lengths.numel() else 0
    return Segment(state.pending[:, :width], state.pending_lengths)


def _classify(
    model: RecurrentMemoryModel, view: EncoderBackbone, state: MemoryState, labels: Tensor | None
) -> RecurrentMemoryOutput:
    output, _ = model.memory.look(
        view, _pending_segment(state), state.tensors, run=lambda rows, lengths: view.classify(rows, lengths, labels)
    )
    return RecurrentMemoryOutput(loss=output.loss, logits=output.logits, memory_state=state)


def _decode(
    model: RecurrentMemoryModel,
    view: Seq2SeqBackbone,
    state: MemoryState,
    labels: Tensor | None,
    kwargs: dict[str, Any],
) -> RecurrentMemoryOutput:
    inputs = {
        name: kwargs[name] for name in ("decoder_input_ids", "decoder_attention_mask") if kwargs.get(name) is not None
    }
    if labels is None and not inputs:
        return RecurrentMemoryOutput(memory_state=state)
    encoded, rows = model.memory.look(view, _pending_segment(state), state.tensors)
    output = view.decode(encoded, rows.lengths, labels=labels, **inputs)
    return RecurrentMemoryOutput(loss=output.loss, logits=output.logits, memory_state=state)
