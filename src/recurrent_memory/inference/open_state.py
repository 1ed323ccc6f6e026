"""A state whose present segment is held open: what was computed of it is kept, so that a new token costs one position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backbones.base import Backbone
from ..errors import GenerationError
from ..segments import Segment, check_ids
from ..state import MemoryState

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel


class OpenState:
    """Reads on token by token, and gives the logits after each.

    A `MemoryState` is a value; this is not: it goes on in place. Beside the state it keeps the keys and values of the read
    block and of what is pending, in a cache that lasts as long as the segment: a full segment is folded from it, by
    running the write block alone, and the next segment begins with an empty one. So memory and time for each token are
    bounded by the segment, whatever was read before.

    Rows that are equally far in their segments go through the model together; rows at different places, one group after
    the other.

    Args:
        model: A decoder that is not in training.
        state: Where to begin. It is not changed.

    Raises:
        GenerationError: if backbone or memory cannot be read on from; see `is_possible`.

    Example:
        >>> opened = OpenState(model, model.read(ids))
        >>> logits = opened.read(next_token)
    """

    def __init__(self, model: RecurrentMemoryModel, state: MemoryState) -> None:
        if not self.is_possible(model):
            raise GenerationError(
                f"a {type(model.backbone).__name__} with a memory of kind {model.memory_config.kind!r}"
                f"{' in training' if model.training else ''} cannot be held open: what is computed of a row's beginning must "
                "stay right when the row grows; call model.eval(), or go on with model.read and model.generate, which compute it anew"
            )
        self.model, self._view = model, model.view
        self._given = state.detach()
        self._groups: list[_Group] = []

    @staticmethod
    def is_possible(model: RecurrentMemoryModel) -> bool:
        """Whether backbone and memory can do it; with dropout, what was computed before would not be what is now."""
        room = model.memory.row_length(model.view)
        return not model.training and model.memory.is_positionwise and model.view.continued(room) is not None

    @property
    def state(self) -> MemoryState:
        """The state after all that was read."""
        if not self._groups:
            return self._given
        order = torch.cat([group.rows for group in self._groups]).argsort()
        return MemoryState.cat([group.state for group in self._groups])[order]

    def repeated(self, times: int) -> OpenState:
        """The state of every row several times, one after the other; what was computed is not taken along."""
        state = self.state
        return OpenState(self.model, state[torch.arange(len(state), device=state.device).repeat_interleave(times)])

    @torch.no_grad()
    def read(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B 1 V"]:
        """Read tokens, and predict the one after them. Where it is interrupted, it is broken: open the state anew.

        Args:
            input_ids: `[B, T]`, one token for each row, or texts of any length.
            attention_mask: `[B, T]`, 0 at padding, on either side.

        Raises:
            InputError: if ids are out of the vocabulary, or shapes do not agree.
            StateModelMismatchError: if another model wrote the state.
        """
        if self._groups and input_ids.shape[1] == 1 and attention_mask is None:
            tokens = check_ids(input_ids, self._view.vocab_size)
            hidden = [self._advance(group, tokens[group.rows]) for group in self._groups]
        else:
            self._given = self.model.read(input_ids, attention_mask, self.state)
            self._groups = self._grouped(self._given)
            hidden = [self._last_hidden(group) for group in self._groups]
        logits = self._view.head(torch.cat(hidden))
        if len(self._groups) > 1:
            logits = logits[torch.cat([group.rows for group in self._groups]).argsort()]
        return logits[:, None]

    def _grouped(self, state: MemoryState) -> list[_Group]:
        """The rows, by the number of their pending tokens."""
        lengths = state.pending_lengths
        each = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        return [_Group(rows, state[rows], self._empty_row()) for rows in each]

    def _empty_row(self) -> Backbone:
        backbone = self._view.continued(self.model.memory.row_length(self._view))
        assert backbone is not None, "__init__ has looked"
        return backbone

    def _advance(self, group: _Group, tokens: Int[Tensor, "b 1"]) -> Float[Tensor, "b D"]:
        if group.state.pending.shape[1] == self.model.memory_config.segment_length:
            _, tensors = self.model.memory.fold(group.row, group.segment, group.state.tensors)
            lengths = torch.zeros_like(group.state.pending_lengths)
            group.state = replace(
                group.state.folded(tensors, torch.ones_like(lengths)),
                pending=group.state.pending[:, :0],
                pending_lengths=lengths,
            )
            group.row = self._empty_row()
        group.state = replace(
            group.state,
            tokens_read=group.state.tokens_read + 1,
            pending=torch.cat([group.state.pending, tokens], 1),
            pending_lengths=group.state.pending_lengths + 1,
        )
        return self._last_hidden(group)

    def _last_hidden(self, group: _Group) -> Float[Tensor, "b D"]:
        hidden, rows = self.model.memory.look(group.row, group.segment, group.state.tensors)
        return rows.text_of(hidden)[:, -1]


@dataclass(slots=True)
class _Group:
    """Rows with equally many pending tokens.

    Args:
        rows: `[b]` which they are.
        state: Theirs, up to date.
        row: The backbone, with what it knows of their present segment.
    """

    rows: Int[Tensor, " b"]
    state: MemoryState
    row: Backbone

    @property
    def segment(self) -> Segment:
        """What is pending."""
        return Segment(self.state.pending, self.state.pending_lengths, is_full=True)
