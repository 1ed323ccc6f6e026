"""A text cut into segments, and the segments folded into a memory: the one idea, without heads and labels.

`step` is the function; `fold`, `read` and what `forward` uses are it in loops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from .backbones.base import Backbone
from .backbones.compiled import compile_layers, release_layers
from .backbones.families import family_named
from .config import MemoryConfig
from .configuration import RecurrentMemoryConfig
from .errors import ConfigError, InputError, StateError, StateModelMismatchError
from .fingerprint import Fingerprint, is_same_model
from .inference.row_threads import Fold, fold_in_pieces
from .memories.base import Memory
from .memories.layerwise import LayerwiseMemory
from .modeling_output import StepOutput
from .segments import Aligned, Segment, align, check_ids, check_mask, join, num_folded, rest_of, window
from .state import MemoryState

if TYPE_CHECKING:
    from .inference.graphs import RecordedFolding
    from .inference.schedule import Folding

FAST = ("auto", "off", "compile", "graph")
GRAPH_DEVICES = ("cuda",)


class ReadsInSegments(PreTrainedModel):
    """A model with a backbone and a memory, that reads texts of any length. The state goes in and comes out."""

    config: RecurrentMemoryConfig
    backbone: PreTrainedModel
    memory: Memory
    memory_config: MemoryConfig
    _fingerprint: Fingerprint
    _fast: str = "auto"
    _recordings: Any = None  # transformers evaluates annotations, where `Recordings` is not imported

    @property
    def fast(self) -> str:
        """Which shortcuts are taken; they compute the same, and round differently in the last digits.

        `auto`: the last layer runs where its output is wanted alone, if that saves time, and on a CPU each thread has rows of
        a batch to itself; `off`: everything as it is written;
        `compile`: the last layer as in `auto`, and the others are compiled when they are first called, which takes half a minute
        and pays for long texts; `graph`: as `auto`, and the folding of a full segment is recorded as a CUDA graph when a text is read
        (`inference/graphs.py`).

        Raises:
            ConfigError: if it is set to something else; if `compile` cannot be done: without a C++ compiler for a model on
                the CPU, or with a memory in every layer; if `graph` is set for a model that is not on a CUDA GPU.
        """
        return self._fast

    @fast.setter
    def fast(self, value: str) -> None:
        if value not in FAST:
            raise ConfigError(f"fast={value!r} is not a way to compute; choose one of {', '.join(FAST)}")
        if value == "graph" and self.device.type not in GRAPH_DEVICES:
            raise ConfigError(
                f"fast='graph' is for a model on a CUDA GPU, this one is on {self.device}; take fast='auto'"
            )
        if value == "compile":
            if isinstance(self.memory, LayerwiseMemory):
                raise ConfigError(f"fast='compile' does not go with kind={self.memory_config.kind!r}; take fast='auto'")
            compile_layers(self.view)
        elif self._fast == "compile":
            release_layers(self.view)
        self._fast = value

    @property
    def view(self) -> Backbone:
        """The backbone, as a memory sees it."""
        view = family_named(self.config.family or "").build(self.backbone, self.config.special_ids)
        view.is_fast = view.is_fast and self.fast != "off"
        return view

    @property
    def fingerprint(self) -> str:
        """Names the weights; the same under dtype, device and adapter merging. States record it."""
        return self._fingerprint.now()()

    def initial_state(self, batch_size: int = 1) -> MemoryState:
        """The state before any text.

        Raises:
            StateError: if `batch_size` is not a positive int.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise StateError(f"batch_size={batch_size!r} must be an int of at least 1")
        device = self.view.embedding.weight.device
        zeros = torch.zeros(batch_size, dtype=torch.long, device=device)
        return MemoryState(
            tensors=self.memory.initial(batch_size),
            tokens_read=zeros,
            segments_folded=zeros,
            pending=torch.zeros(batch_size, 0, dtype=torch.long, device=device),
            pending_lengths=zeros,
            memory_config=self.memory_config,
            fingerprint_source=self._fingerprint.now(),
        )

    def check_state(self, state: MemoryState, where: str = "memory_state") -> None:
        """Refuse a state that this model did not write.

        Raises:
            StateModelMismatchError: if the settings or the weights differ.
        """
        if state.memory_config != self.memory_config:
            raise StateModelMismatchError(
                f"{where}: has the memory settings {state.memory_config}, the model {self.memory_config}; use the model that wrote it"
            )
        if not is_same_model(state.fingerprint_source, self._fingerprint.now()):
            raise StateModelMismatchError(
                f"{where}: was written by a model with fingerprint {state.fingerprint}, this one has {self.fingerprint}; "
                "use the model that wrote it, or read the text again"
            )

    def _going_on(self, state: MemoryState) -> MemoryState:
        self.check_state(state)
        return replace(state, fingerprint_source=self._fingerprint.going_on(state.fingerprint_source))

    def step(
        self,
        segment: Segment | Int[Tensor, "B T"],
        state: MemoryState,
        *,
        return_logits: bool = False,
        return_hidden: bool = True,
    ) -> tuple[StepOutput, MemoryState]:
        """Read one segment and fold it into the memory.

        Args:
            segment: 1…S tokens for every row; a `[B, T]` tensor where all rows are equally long. Rows of length 0 keep
                their memory.
            state: A state with nothing pending.
            return_logits: Whether to run the head at the text positions.
            return_hidden: Whether the last hidden states at the text positions are wanted. Where they are not, some of the
                last layer is left out.

        Raises:
            StateError: if something is pending: `fold` it first.
            InputError: if the segment is longer than S or the batch sizes differ.
        """
        if not isinstance(segment, Segment):
            segment = Segment.full(check_ids(segment, self.view.vocab_size))
        if bool(state.pending_lengths.any()):
            raise StateError("step takes a state with nothing pending; call model.fold(state) first")
        if segment.input_ids.shape[0] != state.batch_size:
            raise InputError(
                f"the segment has {segment.input_ids.shape[0]} rows, the state {state.batch_size}; they must be equal"
            )
        if segment.input_ids.shape[1] > self.memory_config.segment_length:
            raise InputError(
                f"the segment has {segment.input_ids.shape[1]} tokens, more than segment_length={self.memory_config.segment_length}; "
                "use read or forward, which cut the text"
            )
        if not (return_hidden or return_logits):
            return StepOutput(), self.write_segment(segment, self._going_on(state)).advanced(segment.lengths)
        hidden, folded = self.fold_segment(segment, self._going_on(state))
        folded = folded.advanced(segment.lengths)
        logits = self._head_at_all(hidden) if return_logits else None
        return StepOutput(last_hidden_state=hidden, logits=logits), folded

    def _head_at_all(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        batch, width = hidden.shape[:2]
        return self.view.head(hidden.reshape(batch * width, -1)).reshape(batch, width, -1)

    def fold_segment(self, segment: Segment, state: MemoryState) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """Fold a segment into the rows that have one; counters of tokens stay, those of segments move."""
        view = self.view
        active = segment.lengths > 0
        if bool(active.all()):
            hidden, tensors = self.memory.fold(view, segment, state.tensors)
            return hidden, state.folded(tensors, active)
        rows = active.nonzero()[:, 0]
        hidden = torch.zeros(
            *segment.input_ids.shape, view.embedding_width, dtype=self.dtype, device=segment.input_ids.device
        )
        if not rows.numel():
            return hidden, state
        some, new = self.memory.fold(view, segment.rows(rows), {name: t[rows] for name, t in state.tensors.items()})
        hidden = hidden.to(some.dtype).index_copy(
            0, rows, torch.nn.functional.pad(some, (0, 0, 0, hidden.shape[1] - some.shape[1]))
        )
        return hidden, state.folded(_in_rows(state.tensors, rows, new), active)

    def write_segment(self, segment: Segment, state: MemoryState) -> MemoryState:
        """`fold_segment` without the hidden states of the text, which saves some of the last layer."""
        active = segment.lengths > 0
        if segment.is_full or bool(active.all()):
            return state.folded(self._written(segment, state.tensors), active)
        rows = active.nonzero()[:, 0]
        if not rows.numel():
            return state
        new = self._written(segment.rows(rows), {name: t[rows] for name, t in state.tensors.items()})
        return state.folded(_in_rows(state.tensors, rows, new), active)

    def _written(self, segment: Segment, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        view = self.view

        def write(rows: slice) -> dict[str, Tensor]:
            some = Segment(segment.input_ids[rows], segment.lengths[rows], is_full=segment.is_full)
            return self.memory.write(view, some, _some_rows(tensors, rows))

        return self._in_pieces(write, *segment.input_ids.shape)

    def fold_whole(self, input_ids: Int[Tensor, "B T"], state: MemoryState) -> MemoryState:
        """The state after n whole segments of every row, of which none stays pending.

        Args:
            input_ids: `[B, n·S]`, in the vocabulary.
            state: A state with nothing pending.
        """
        text = Segment.full(input_ids)
        count = input_ids.shape[1] // self.memory_config.segment_length
        return self._fold_in_all_rows(text, count, self._going_on(state)).advanced(text.lengths)

    def fold(self, state: MemoryState) -> MemoryState:
        """Fold what is pending, a partial segment too. Rows with nothing pending stay as they are."""
        if not bool(state.pending_lengths.any()):
            return state
        state = self._going_on(state)
        segment = Segment(state.pending[:, : int(state.pending_lengths.max())], state.pending_lengths)
        return self.write_segment(segment, state).with_pending(
            state.pending[:, :0], torch.zeros_like(state.pending_lengths)
        )

    def new_text(
        self, input_ids: Tensor, attention_mask: Tensor | None, state: MemoryState | None
    ) -> tuple[Aligned, Segment, MemoryState]:
        """The new tokens aligned left, the whole text to read (pending, then new), and the state to go on from."""
        view = self.view
        input_ids = check_ids(input_ids, view.vocab_size).to(view.embedding.weight.device)
        keep = check_mask(attention_mask, input_ids)
        if view.strips_special_tokens:
            keep = keep & ~torch.isin(input_ids, torch.tensor(view.special_ids(), device=input_ids.device))
        if state is None:
            state = self.initial_state(input_ids.shape[0])
        state = self._going_on(state)
        if state.batch_size != input_ids.shape[0]:
            raise InputError(
                f"input_ids has {input_ids.shape[0]} rows, memory_state {state.batch_size}; they must be equal"
            )
        new = align(input_ids, keep)
        return new, join(state.pending, state.pending_lengths, new.input_ids, new.lengths), state

    @torch.no_grad()
    def read(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        memory_state: MemoryState | None = None,
        *,
        schedule: str = "sequential",
    ) -> MemoryState:
        """Read text into the memory. Runs no head, keeps no more than a segment; no gradients.

        Args:
            input_ids: `[B, T]` of any length.
            attention_mask: `[B, T]`, 0 at padding, on either side.
            memory_state: The state to go on from.
            schedule: `sequential`, a segment after the other; `diagonal`, several segments at once, each in another layer,
                for memories that every layer keeps for itself; `auto`, the faster one, measured once. They compute the
                same, and round differently: what `auto` gives may differ in the last digits from machine to machine.

        Returns:
            The state after the text. 1…S tokens are pending (0 only before any text).

        Raises:
            InputError: if ids are out of the vocabulary, or shapes do not agree.
            StateModelMismatchError: if another model wrote the state.
            ConfigError: if there is no such schedule, or the memory or the model does not go with it.
        """
        new, text, state = self.new_text(input_ids, attention_mask, memory_state)
        return self.fold_full(text, state, schedule).advanced(new.lengths).detach()

    def fold_full(self, text: Segment, state: MemoryState, schedule: str = "sequential") -> MemoryState:
        """Fold every full segment of a text that another token follows; the rest becomes pending."""
        length = self.memory_config.segment_length
        folds = num_folded(text.lengths, length)
        if (folding := self.folding_on_diagonals(text, state, schedule)) is not None:
            return state.folded(folding.tensors_at_end(), folds).with_pending(*rest_of(text, folds * length))
        first, last = (int(folds.min()), int(folds.max())) if folds.numel() else (0, 0)
        state = self._fold_in_all_rows(text, first, state)
        for index in range(first, last):
            segment = window(text, index * length, length)
            state = self.write_segment(Segment(segment.input_ids, segment.lengths * (index < folds)), state)
        return state.with_pending(*rest_of(text, folds * length))

    def folding_on_diagonals(
        self, text: Segment, state: MemoryState, schedule: str, *, with_hidden: bool = False
    ) -> Folding | None:
        """The segments that `fold_full` folds, on diagonals; None where they are to be folded one after the other."""
        if schedule == "sequential":
            return None
        from .inference.schedule import folding

        return folding(self, text, state, schedule, with_hidden=with_hidden)

    def _fold_in_all_rows(self, text: Segment, count: int, state: MemoryState) -> MemoryState:
        """`fold_segment` for the first segments of a text that are full in every row, without looking at each."""
        if not count:
            return state
        length, view, tensors = self.memory_config.segment_length, self.view, state.tensors
        lengths = torch.full_like(text.lengths, length)
        if self._fast == "graph" and self.device.type in GRAPH_DEVICES and not torch.is_grad_enabled():
            tensors = self._recorded(tensors).run(text.input_ids[:, : count * length], tensors)
        else:

            def write(rows: slice) -> dict[str, Tensor]:
                some = _some_rows(state.tensors, rows)
                for start in range(0, count * length, length):
                    segment = Segment(text.input_ids[rows, start : start + length], lengths[rows], is_full=True)
                    some = self.memory.write(view, segment, some)
                return some

            tensors = self._in_pieces(write, len(lengths), length)
        return state.folded(tensors, torch.full_like(lengths, count))

    def _in_pieces(self, fold: Fold, batch: int, positions: int) -> dict[str, Tensor]:
        """`fold` for all rows; on a CPU a few at a time, if that may be."""
        if self._fast != "auto" or self.device.type != "cpu" or self.training:
            return fold(slice(0, batch))
        changes_layers = isinstance(self.memory, LayerwiseMemory)  # while it runs them: not for two threads at once
        return fold_in_pieces(fold, batch, positions, 1 if changes_layers else None)

    def _recorded(self, tensors: dict[str, Tensor]) -> RecordedFolding:
        from .inference.graphs import Recordings

        known: Recordings = self._recordings or Recordings()
        self._recordings = known
        return known.of(self, tensors)


def _some_rows(tensors: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _in_rows(tensors: dict[str, Tensor], rows: Tensor, new: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with some of their rows replaced."""
    return {name: tensor.index_copy(0, rows, new[name].to(tensor.dtype)) for name, tensor in tensors.items()}
