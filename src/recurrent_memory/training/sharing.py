"""Several questions about one text: the text is read once, its memory then stands before each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import InputError
from ..segments import Segment


@dataclass(frozen=True, slots=True)
class Shared:
    """Which rows of a segment are read for all.

    Args:
        take: `[U]` the rows that are read.
        back: `[B]` for every row, which of these it has in common with it.
    """

    take: Int[Tensor, " U"]
    back: Int[Tensor, " B"]

    def some(self, segment: Segment) -> Segment:
        """What is read."""
        return Segment(segment.input_ids[self.take], segment.lengths[self.take])

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The memories of the rows that are read."""
        return {name: tensor[self.take] for name, tensor in tensors.items()}

    def all(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The memories of all rows."""
        return {name: tensor[self.back] for name, tensor in tensors.items()}


def share(
    texts: Int[Tensor, " B"],
    ids: Segment,
    breaks: Int[Tensor, " B"],
    segment_length: int,
    apart: Bool[Tensor, "N B"],
    before: dict[str, Tensor],
) -> list[Shared | None]:
    """For each segment the rows that are read for all; None: every row is.

    Args:
        texts: `[B]` rows of the same number have the same tokens before their break.
        ids: The rows, before they are broken.
        breaks: `[B]` tokens before the question.
        segment_length: S.
        apart: Rows that are read for themselves in each segment.
        before: The memories before the text.

    Raises:
        InputError: if it is not one number for each row, or rows of the same number differ before their question.

    Example:
        >>> rows = Segment.full(torch.tensor([[5, 6, 1], [5, 6, 2]]))
        >>> first, second = share(torch.tensor([0, 0]), rows, torch.tensor([2, 2]), 2, torch.zeros(2, 2, dtype=torch.bool), {})
        >>> (first.take.tolist(), first.back.tolist()), second
        (([0], [0, 0]), None)
    """
    count = len(breaks)
    if texts.shape != (count,):
        raise InputError(f"texts has the shape {tuple(texts.shape)}; it must have one number for each of {count} rows")
    rows = torch.arange(count, device=breaks.device)
    _, group = torch.unique(texts.to(breaks.device), return_inverse=True)
    firsts = torch.full_like(rows, count).scatter_reduce(0, group, rows, "amin")[group]
    in_text = repeat(torch.arange(ids.input_ids.shape[1], device=rows.device), "T -> B T", B=count) < breaks[:, None]
    same = (ids.input_ids == ids.input_ids[firsts]) | ~in_text
    if bool((breaks != breaks[firsts]).any()) or not bool(same.all()):
        raise InputError("texts: rows of the same number must have the same tokens before their questions")
    if not all(tensor.equal(tensor[firsts]) for tensor in before.values()):
        raise InputError("texts: rows of the same number must go on from the same state")
    num_text_segments = -(-breaks // segment_length)
    shared: list[Shared | None] = []
    for index, alone in enumerate(apart):
        take, back = torch.unique(torch.where((index < num_text_segments) & ~alone, firsts, rows), return_inverse=True)
        shared.append(Shared(take, back) if len(take) < count else None)
    return shared
