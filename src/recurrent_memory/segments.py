"""Cut rows of any length into segments, and put what came out back where it came from.

Rows of a batch may differ in length and be padded on either side. A row is cut from its own start: what it is
batched with, and where its padding is, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text for every row, padded on the right.

    Args:
        input_ids: `[B, T]` token ids; what lies past a row's length is ignored.
        lengths: `[B]` tokens of each row, 0…T.
        is_full: Whether all rows are known to be T long: then nobody has to look, which on a GPU means to wait.
    """

    input_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    is_full: bool = False

    @classmethod
    def full(cls, input_ids: Int[Tensor, "B T"]) -> Segment:
        """A segment in which every row is full."""
        batch, length = input_ids.shape
        return cls(input_ids, torch.full((batch,), length, dtype=torch.long, device=input_ids.device), is_full=True)

    @property
    def is_ragged(self) -> bool:
        """Whether some row is shorter than the segment is wide."""
        return not self.is_full and bool((self.lengths != self.input_ids.shape[1]).any())

    def rows(self, index: Tensor) -> Segment:
        """The segment of some rows, no wider than they need."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if lengths.numel() else 0
        return Segment(self.input_ids[index, :width], lengths)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows moved to the left edge, and where each token stood.

    Args:
        input_ids: `[B, T]` with each row's tokens first, in order.
        lengths: `[B]` tokens of each row.
        moved_from: `[B, T]` the column of the caller's `input_ids` that each token came from; None: its own.
    """

    input_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    moved_from: Int[Tensor, "B T"] | None = None

    @property
    def columns(self) -> Int[Tensor, "B T"]:
        """`moved_from`, always as numbers; made when it is asked for, since it is as large as the text."""
        if self.moved_from is not None:
            return self.moved_from
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand_as(self.input_ids)


def check_ids(input_ids: Tensor, vocab_size: int) -> Tensor:
    """Token ids as a `[B, T]` long tensor.

    Raises:
        InputError: if they are not whole numbers in `[0, vocab_size)`, or not of one or two axes.
    """
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool or input_ids.is_complex():
        raise InputError(
            f"input_ids must be whole numbers (torch.long), not {input_ids.dtype}; pass token ids, not text"
        )
    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    if input_ids.ndim != 2:
        raise InputError(f"input_ids must have the axes [batch, tokens], not the shape {tuple(input_ids.shape)}")
    if input_ids.numel():
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise InputError(
                f"input_ids holds {bad}, outside the model's vocabulary of {vocab_size}; was it made by another tokenizer?"
            )
    return input_ids.long()


def check_mask(attention_mask: Tensor | None, input_ids: Tensor) -> Bool[Tensor, "B T"]:
    """The mask as booleans, all true where there is none.

    Raises:
        InputError: if its shape is not that of `input_ids`.
    """
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.ndim == 1:
        attention_mask = attention_mask[None]
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
            "they must be equal (the mask covers the new tokens only, not the memory)"
        )
    return attention_mask.to(input_ids.device).bool()


def align(input_ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> Aligned:
    """Move the kept tokens of each row to its left edge, in order. Scattering to `columns` is the inverse.

    Example:
        >>> ids, keep = torch.tensor([[0, 0, 7, 8]]), torch.tensor([[False, False, True, True]])
        >>> align(ids, keep).input_ids.tolist()
        [[7, 8]]
    """
    lengths = keep.sum(1)
    width = int(lengths.max()) if lengths.numel() else 0
    if bool(keep.all()):
        return Aligned(input_ids, lengths)
    columns = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, :width]
    return Aligned(input_ids.gather(1, columns), lengths, columns)


def join(
    left: Int[Tensor, "B P"],
    left_lengths: Int[Tensor, " B"],
    right: Int[Tensor, "B T"],
    right_lengths: Int[Tensor, " B"],
) -> Segment:
    """Each row's `left` followed by its `right`, both aligned left, as one row padded on the right."""
    lengths = left_lengths + right_lengths
    width = int(lengths.max()) if lengths.numel() else 0
    if left.shape[1] == 0 or not bool(left_lengths.any()):
        return Segment(right[:, :width], lengths)
    out = right.new_zeros(right.shape[0], width)
    for block, block_lengths, start in (
        (left, left_lengths, torch.zeros_like(lengths)),
        (right, right_lengths, left_lengths),
    ):
        if block.shape[1] == 0:
            continue
        offset = torch.arange(block.shape[1], device=block.device)
        valid = offset < block_lengths[:, None]
        rows = torch.arange(block.shape[0], device=block.device)[:, None].expand_as(valid)
        out[rows[valid], (start[:, None] + offset)[valid]] = block[valid]
    return Segment(out, lengths)


def window(text: Segment, start: int, length: int) -> Segment:
    """The tokens `start … start + length` of every row; rows that end earlier are shorter, or empty."""
    lengths = (text.lengths - start).clamp(0, length)
    width = int(lengths.max()) if lengths.numel() else 0
    return Segment(text.input_ids[:, start : start + width], lengths)


def num_folded(lengths: Int[Tensor, " B"], segment_length: int) -> Int[Tensor, " B"]:
    """How many segments of each row are folded: a full segment stays pending until another token arrives."""
    return (lengths - 1).clamp(min=0) // segment_length


def rest_of(text: Segment, starts: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B P"], Int[Tensor, " B"]]:
    """What each row has from its own start on, aligned left, and how long that is."""
    lengths = text.lengths - starts
    width = int(lengths.max()) if lengths.numel() else 0
    if width == 0:
        return text.input_ids[:, :0], lengths
    positions = starts[:, None] + torch.arange(width, device=starts.device)
    return text.input_ids.gather(1, positions.clamp(max=text.input_ids.shape[1] - 1)), lengths


def break_at(text: Segment, breaks: Int[Tensor, " B"], segment_length: int) -> tuple[Segment, Int[Tensor, "B T"]]:
    """Have each row's tokens from its break on begin a segment; what is left of the one before stays empty.

    Args:
        text: Whole rows.
        breaks: Where each row is broken, 0…its length; at a multiple of `segment_length`, or at an end, nothing moves.
        segment_length: S.

    Returns:
        The rows with the empty places in them, counted in their lengths, and for each place the column of `text` that it
        came from, -1: it is empty, or past the end.

    Example:
        >>> rows, columns = break_at(Segment.full(torch.tensor([[1, 2, 3, 4]])), torch.tensor([3]), 4)
        >>> rows.input_ids.tolist(), columns.tolist()
        ([[1, 2, 3, 0, 4]], [[0, 1, 2, -1, 3]])
    """
    gaps = torch.where(breaks < text.lengths, -breaks % segment_length, 0)
    lengths = text.lengths + gaps
    width = int(lengths.max()) if lengths.numel() else 0
    places = torch.arange(width, device=breaks.device)
    columns = torch.where(places < breaks[:, None], places, places - gaps[:, None])
    empty = (places >= breaks[:, None]) & (places < (breaks + gaps)[:, None]) | (places >= lengths[:, None])
    columns = columns.masked_fill(empty, -1)
    return Segment(text.input_ids.gather(1, columns.clamp(min=0)).masked_fill(empty, 0), lengths), columns
