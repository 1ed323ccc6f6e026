"""A batch of texts, cut into segments, each with its loss: what every kind of backpropagation goes over.

A `Cell` is what one segment gave: the memory after it, and the loss of the predictions made in it. Which cells are kept
for the backward pass, for how long, and whether they are run again, is the business of `bptt.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..backbones.encoder import EncoderBackbone
from ..backbones.seq2seq import Seq2SeqBackbone
from ..errors import InputError
from ..forward import IGNORE, read_segment, targets_of
from ..head_loss import at_least_float32, head_losses
from ..model import RecurrentMemoryModel
from ..segments import Segment, break_at, num_folded, rest_of
from ..state import MemoryState
from .keeping import Keep, check_keeps, kept_loss, watched
from .sharding import Lockstep, is_sharded, run_idly
from .sharing import Shared, share


@dataclass(frozen=True, slots=True)
class Cell:
    """What one segment gave.

    Args:
        tensors: The memory after it.
        loss: The sum of the cross-entropies of its predictions, divided by the number of labels in the batch; None
            where nothing is predicted.
        num_right: `[]` predictions whose most likely class is the label.
        num_wrong: `[B]` predictions of each row whose most likely class is not the label.
        row_losses: `[B]` the sum of the cross-entropies of each row, cut from the graph; 0 where labels are not classes.
        kept: The loss that the memory of some rows stays as it is; None where that is not wanted.
    """

    tensors: dict[str, Tensor]
    loss: Float[Tensor, ""] | None = None
    num_right: Int[Tensor, ""] | None = None
    num_wrong: Int[Tensor, " B"] | None = None
    row_losses: Float[Tensor, " B"] | None = None
    kept: Float[Tensor, ""] | None = None

    @property
    def objective(self) -> Float[Tensor, ""] | None:
        """What gradients are taken of; None: nothing."""
        if self.loss is None or self.kept is None:
            return self.kept if self.loss is None else self.loss
        return self.loss + self.kept


class Unrolling:
    """A batch of texts as segments, to be read one after the other.

    The loss of a segment is that of the predictions made at its positions: the last token of a segment predicts the
    first of the next. Rows may differ in length; a row that has ended keeps its memory. Classifiers and encoder–decoders
    predict in the last segment of each row.

    With `text_lengths`, what comes after so many tokens of a row (the question) begins a segment of its own, whatever is
    left of the one before: as `fold` before a question does it.

    Args:
        model: The model.
        input_ids: `[B, T]`.
        labels: As for `RecurrentMemoryModel.forward`; -100 where there is no loss. The head runs at the others only.
        attention_mask: `[B, T]`, 0 at padding, on either side.
        memory_state: The state to go on from. Gradients end at it.
        num_items_in_batch: What the sum over the labels is divided by; None: by their number, the loss is a mean.
        text_lengths: `[B]` tokens of each row before its question, what is pending included; None: no row has one.
        keep: In which rows the memory is to stay as it is; None: in none.
        texts: `[B]` which text a row has before its question: those of rows with the same number are read once, and go on from the
            same state. None: each row's own.

    Raises:
        ConfigError: if the memory is not one that can be kept.
        InputError: if the ids are out of the vocabulary, or shapes do not agree.
        StateModelMismatchError: if another model wrote the state.
    """

    def __init__(
        self,
        model: RecurrentMemoryModel,
        input_ids: Int[Tensor, "B T"],
        labels: Tensor,
        attention_mask: Tensor | None = None,
        memory_state: MemoryState | None = None,
        num_items_in_batch: Tensor | int | None = None,
        text_lengths: Int[Tensor, " B"] | None = None,
        keep: Keep | None = None,
        texts: Int[Tensor, " B"] | None = None,
    ) -> None:
        self.model, self.view = model, model.view
        given = memory_state.detach() if memory_state is not None else None
        self.new, self.text, self.start = model.new_text(input_ids, attention_mask, given)
        self.length = model.memory_config.segment_length
        whole = self.text
        breaks = whole.lengths if text_lengths is None else self._check_breaks(text_lengths)
        self.text, columns = break_at(whole, breaks, self.length)
        self._tokens = columns >= 0
        self.folds = num_folded(self.text.lengths, self.length)
        self.num_segments = int(self.folds.max()) + 1
        self.labels = labels.to(self.text.input_ids.device)
        self.reads_last = isinstance(self.view, Seq2SeqBackbone) or (
            isinstance(self.view, EncoderBackbone) and self.view.classifies
        )
        if self.reads_last:
            targets = self._check_rows(self.labels)
            has_label = (targets != IGNORE).flatten(1).any(1)
            asking = [(has_label & (self.folds == index)).any() for index in range(self.num_segments)]
        else:
            self.labels = self._check_tokens(self.labels, input_ids)
            shift = int(self.view.separate_write_block)
            targets = targets_of(self.new, whole, self.start.pending_lengths, self.labels, shift)
            targets = self.targets = targets.gather(1, columns.clamp(min=0)).masked_fill(~self._tokens, IGNORE)
            asking = [(self.targets[:, self._span(index)] != IGNORE).any() for index in range(self.num_segments)]
        self.has_loss: list[bool] = torch.stack(asking).tolist()
        self.num_labels = int((targets != IGNORE).sum())
        self.num_items = num_items_in_batch if num_items_in_batch is not None else max(self.num_labels, 1)
        self.predicts, self.lockstep = self.has_loss, None
        if is_sharded(model):
            self.lockstep = Lockstep(self._passes())
            self.num_segments = len(self.lockstep.passes)
            self.predicts = [has_loss for _, _, has_loss in self.lockstep.own]
            self.has_loss = [has_loss for _, _, has_loss in self.lockstep.passes]
        self.keep, self._num_kept = keep, 0
        if keep is not None and bool(keep.rows.any()):
            check_keeps(model)
            self._num_kept = int(self.folds[keep.rows].max())
            self.has_loss = [asks or index < self._num_kept for index, asks in enumerate(self.has_loss)]
        self._shared: list[Shared | None] = [None] * self.num_segments
        if texts is not None:
            if text_lengths is None:
                raise InputError("texts is given without text_lengths, and no row has a question; leave texts out")
            self._shared = share(texts, whole, breaks, self.length, self._asked(), self.start.tensors)

    def _passes(self) -> Tensor:
        """`[N, 3]`: whether a segment is folded in some row, is looked at in some, and has a loss."""
        index = torch.arange(self.num_segments, device=self.folds.device)
        folds = (index[:, None] < self.folds).any(1)
        has_loss = torch.tensor(self.has_loss, device=self.folds.device)
        if self.reads_last:
            return torch.stack([folds, has_loss, has_loss], 1)
        return torch.stack([folds, (self._asked() & (index[:, None] >= self.folds)).any(1), has_loss], 1)

    def _asked(self) -> Tensor:
        """`[N, B]`: whether something is predicted from what a row's segment is read to."""
        if self.reads_last:  # from the memory
            return torch.zeros(self.num_segments, len(self.folds), dtype=torch.bool, device=self.folds.device)
        spans = [self.targets[:, self._span(index)] for index in range(self.num_segments)]
        return torch.stack([(targets != IGNORE).any(1) for targets in spans])

    def _check_rows(self, labels: Tensor) -> Tensor:
        if labels.shape[:1] != self.folds.shape:
            raise InputError(f"labels has {labels.shape[:1]} rows, input_ids {len(self.folds)}; they must be equal")
        return labels[:, None] if labels.ndim == 1 else labels

    def _check_tokens(self, labels: Tensor, input_ids: Tensor) -> Tensor:
        if labels.ndim == 1:
            labels = labels[None]
        if labels.shape != (len(self.folds), input_ids.shape[-1]):
            raise InputError(
                f"labels has the shape {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}; they must be equal"
            )
        return labels

    def _check_breaks(self, text_lengths: Tensor) -> Tensor:
        breaks = text_lengths.to(self.text.lengths.device)
        if breaks.shape != self.text.lengths.shape or bool(((breaks < 0) | (breaks > self.text.lengths)).any()):
            raise InputError(
                f"text_lengths={text_lengths.tolist()} must be one for each row, 0 to its length ({self.text.lengths.tolist()})"
            )
        return breaks

    def _segment(self, index: int) -> Segment:
        span = self._span(index)
        lengths = self._tokens[:, span].sum(1)
        width = int(lengths.max()) if lengths.numel() else 0
        return Segment(self.text.input_ids[:, span][:, :width], lengths)

    def _span(self, index: int) -> slice:
        return slice(index * self.length, (index + 1) * self.length)

    @property
    def last_loss(self) -> int:
        """The index of the last segment in which something is predicted; -1: nothing is."""
        return max((index for index, asks in enumerate(self.has_loss) if asks), default=-1)

    def cell(self, index: int, tensors: dict[str, Tensor], *, with_head: bool = True) -> Cell:
        """Read segment `index` with the memory before it.

        Args:
            index: 0…N − 1.
            tensors: The memory after segment `index - 1`.
            with_head: Whether the loss is wanted. Where it is not, the head of a language model is not run; all else,
                which may draw random numbers, is.
        """
        keep = self.keep if index < self._num_kept else None
        cell = self._read(index, tensors, with_head) if keep is None else self._keeping(index, tensors, with_head, keep)
        return cell if self.lockstep is None else self._kept_up(index, tensors, cell, self.lockstep)

    def _keeping(self, index: int, before: dict[str, Tensor], with_head: bool, keep: Keep) -> Cell:
        with watched(self.model) as seen:
            cell = self._read(index, before, with_head)
        active, after, rows = index < self.folds, cell.tensors, keep.rows
        shared = self._shared[index]
        if shared is not None:  # each text once
            active, rows = active[shared.take], rows[shared.take]
            before, after = shared.taken(before), shared.taken(after)
        loss = kept_loss(self.model.memory, before, after, seen, active, active & rows)
        return replace(cell, kept=keep.weight * loss / self._num_kept)

    def _kept_up(self, index: int, before: dict[str, Tensor], cell: Cell, lockstep: Lockstep) -> Cell:
        """The same, after the layers have run as often as in other processes, and will so backward."""
        idle = [
            run_idly(self.model, before, fold=fold)
            for reason, fold in enumerate((True, False))
            if lockstep.is_idle(index, reason)
        ]
        zero = torch.stack([*idle, *(tensor.sum() * 0.0 for tensor in cell.tensors.values())]).sum()
        if self.has_loss[index]:
            return replace(cell, loss=zero if cell.loss is None else cell.loss + zero)
        return replace(cell, tensors={name: tensor + zero for name, tensor in cell.tensors.items()}) if idle else cell

    def _read(self, index: int, tensors: dict[str, Tensor], with_head: bool) -> Cell:
        segment = self._segment(index)
        state, shared = replace(self.start, tensors=tensors), self._shared[index]
        if not self.reads_last:
            return self._predict(index, segment, state, with_head, shared)
        folding = Segment(segment.input_ids, segment.lengths * (index < self.folds))
        if shared is None:
            after = self.model.write_segment(folding, state).tensors
        else:
            after = shared.all(self.model.write_segment(shared.some(folding), state.index(shared.take)).tensors)
        return self._answer(index, segment, tensors, after) if self.predicts[index] else Cell(after)

    def _predict(
        self, index: int, segment: Segment, state: MemoryState, with_head: bool, shared: Shared | None
    ) -> Cell:
        target = self.targets[:, self._span(index)][:, : segment.input_ids.shape[1]]
        folding, count = index < self.folds, len(self.folds)
        read = torch.arange(count, device=folding.device) if shared is None else shared.take
        if shared is not None:
            segment, target, folding, state = shared.some(segment), target[read], folding[read], state.index(read)
        needed = target != IGNORE
        hidden, memory = read_segment(self.model, segment, folding, needed.any(1), state)
        after = memory.tensors if shared is None else shared.all(memory.tensors)
        if not (with_head and self.predicts[index]):
            return Cell(after)
        target = target[needed]
        losses, is_right = head_losses(self.view, hidden[needed], target)
        rows = read[needed.nonzero()[:, 0]]
        wrong = torch.zeros_like(self.folds).index_add(0, rows, (~is_right).long())
        of_rows = losses.new_zeros(count).index_add(0, rows, losses.detach())
        return Cell(after, losses.sum() / self.num_items, is_right.sum(), wrong, of_rows)

    def _answer(self, index: int, segment: Segment, before: dict[str, Tensor], after: dict[str, Tensor]) -> Cell:
        """The rows whose last segment this is: their class, or what the decoder writes."""
        rows = (self.folds == index).nonzero()[:, 0]
        labels = self.labels[rows]
        part, memory = segment.rows(rows), {name: tensor[rows] for name, tensor in before.items()}
        output: Any
        if isinstance(self.view, Seq2SeqBackbone):
            encoded, seen = self.model.memory.look(self.view, part, memory)
            output = self.view.decode(encoded, seen.lengths, labels=labels)
        else:
            assert isinstance(self.view, EncoderBackbone)
            classify = self.view.classify
            output, _ = self.model.memory.look(
                self.view, part, memory, run=lambda rows, lengths: classify(rows, lengths, labels)
            )
        counted = labels != IGNORE
        # The model's is a mean over the labels that it was given. A quotient of whole numbers would be float32.
        loss = output.loss * counted.sum() / self.num_items
        wrong = torch.zeros_like(self.folds)
        logits = at_least_float32(output.logits.detach())
        of_rows = logits.new_zeros(len(self.folds))
        if labels.is_floating_point():
            return Cell(after, loss, torch.zeros((), dtype=torch.long, device=labels.device), wrong, of_rows)
        is_right = logits.argmax(-1) == labels
        wrong = wrong.index_copy(0, rows, (~is_right & counted).reshape(len(rows), -1).sum(1))
        losses = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="none")
        of_rows = of_rows.index_copy(0, rows, losses.reshape(len(rows), -1).sum(1))
        return Cell(after, loss, (is_right & counted).sum(), wrong, of_rows)

    def final_state(self, tensors: dict[str, Tensor]) -> MemoryState:
        """The state after the text, cut from the graph, with the memory after the last segment."""
        state = replace(self.start, tensors=tensors, segments_folded=self.start.segments_folded + self.folds)
        return state.with_pending(*rest_of(self.text, self.folds * self.length)).advanced(self.new.lengths).detach()
