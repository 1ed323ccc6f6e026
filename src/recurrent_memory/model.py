"""The recurrent-memory model: any backbone, any kind of memory, one function `step(segment, state)` in several loops."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from .backbones.base import Backbone
from .backbones.families import check_attention, family_named
from .config import MemoryConfig
from .configuration import RecurrentMemoryConfig
from .errors import BackboneError, ConfigError, InputError, StateError, StateModelMismatchError
from .fingerprint import Fingerprint, is_same_model
from .forward import run_forward
from .inference.generation import GenerationWithMemory
from .loading import build_backbone_model, load_pretrained, read_backbone
from .memories.base import Memory
from .memories.registry import memory_class
from .modeling_output import RecurrentMemoryOutput, StepOutput
from .segments import Aligned, Segment, align, check_ids, check_mask, join, num_folded, rest_of, window
from .state import MemoryState


class RecurrentMemoryModel(GenerationWithMemory, PreTrainedModel, GenerationMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A Hugging Face model that reads texts of any length, a segment at a time, into a memory of constant size.

    Make one with `from_backbone`, load one with `from_pretrained`. Memory is never kept inside the model: `read` and
    `forward` return a `MemoryState`, and take one to go on from.

    Bulatov, Kuratov, Burtsev: Recurrent Memory Transformer, NeurIPS 2022 (arXiv:2207.06881).

    Example:
        >>> model = RecurrentMemoryModel.from_backbone("gpt2", MemoryConfig(num_memory_tokens=16, segment_length=512))
        >>> state = model.read(ids)
        >>> model.generate(question_ids, memory_state=state, max_new_tokens=20)
    """

    config_class = RecurrentMemoryConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa: ClassVar[bool] = True
    _supports_flash_attn: ClassVar[bool] = True
    _supports_flex_attn: ClassVar[bool] = True
    _supports_attention_backend: ClassVar[bool] = True
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = []

    config: RecurrentMemoryConfig

    def __init__(self, config: RecurrentMemoryConfig, backbone: PreTrainedModel | None = None) -> None:
        attention = config._attn_implementation  # as asked for; None: the backbone's own choice  # pyright: ignore[reportPrivateUsage]
        super().__init__(config)
        self.backbone = backbone if backbone is not None else build_backbone_model(config, attention)
        config._attn_implementation = self.backbone.config._attn_implementation  # pyright: ignore[reportPrivateUsage]
        self.loss_type = self.view.loss_type
        if not any(parameter.is_meta for parameter in self.backbone.parameters()):
            for module in self.backbone.modules():  # an adapter's layers too: nothing that is there is drawn anew
                module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]
        self.memory_config: MemoryConfig = config.memory_config
        self.memory: Memory = memory_class(self.memory_config.kind)(self.memory_config, self.view)
        self._check_fits()
        self.post_init()
        self._fingerprint = Fingerprint(self)

    # ------------------------------------------------------------------ making and loading

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        memory: MemoryConfig | None = None,
        *,
        task: str | None = None,
        num_labels: int | None = None,
        tokenizer: Any = None,
        cls_token_id: int | None = None,
        sep_token_id: int | None = None,
        **kwargs: Any,
    ) -> RecurrentMemoryModel:
        """Give a model a memory.

        Args:
            backbone: A hub id, a folder, or a loaded model (a PEFT model too: its adapter is kept inside).
            memory: The memory's settings.
            task: The head: "causal-lm" for decoders; "masked-lm" (default) or "sequence-classification" for encoders;
                "seq2seq-lm" for encoder–decoders.
            num_labels: Classes of a classification head.
            tokenizer: Where the [CLS] and [SEP] ids of an encoder come from; loaded beside the backbone if not given.
            cls_token_id: [CLS], if there is no tokenizer.
            sep_token_id: [SEP], if there is no tokenizer.
            **kwargs: For the backbone's `from_pretrained`, such as `dtype` or `attn_implementation`.

        Raises:
            BackboneError: if the family is not supported, the model is broken, or its special tokens are not known.
            ConfigError: if a segment with its memory does not fit the backbone.
        """
        model, config = read_backbone(
            backbone, memory or MemoryConfig(), task, num_labels, tokenizer, cls_token_id, sep_token_id, kwargs
        )
        made = cls(config, backbone=model)
        check_attention(made.view)
        made.memory.reset_parameters(made.view)
        if model.can_generate():
            made.generation_config = copy.deepcopy(model.generation_config)
        made.train(model.training)
        return made

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> RecurrentMemoryModel:
        """Load a folder that `save_pretrained` wrote, or the same on the hub. Weights are safetensors, never pickles.

        Raises:
            BackboneError: if the folder is missing, is not a recurrent-memory model, or its weights are broken.
        """
        return load_pretrained(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write `config.json` and safetensors into a folder, PEFT adapters inside."""
        self.config.fingerprint = self.fingerprint
        self.config.architectures = [type(self).__name__]
        if self.config.peft:
            from .adapters import active_adapters

            self.config.peft_active = active_adapters(self.backbone)
        super().save_pretrained(str(save_directory), **kwargs)

    def _check_fits(self) -> None:
        limit, length = self.view.max_row_length(), self.memory.row_length(self.view)
        if limit is not None and length > limit:
            spare = limit - (length - self.memory_config.segment_length)
            advice = f"take segment_length at most {spare}" if spare > 0 else "take fewer memory tokens"
            raise ConfigError(
                f"segment_length={self.memory_config.segment_length} with num_memory_tokens={self.memory_config.num_memory_tokens} "
                f"makes rows of {length} positions, but the backbone reads at most {limit} (its positions, or its smallest "
                f"sliding window); {advice}"
            )

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, Memory):
            if not any(p.device.type == "meta" for p in self.backbone.parameters()):
                module.reset_parameters(self.view)
        elif not isinstance(module, RecurrentMemoryModel):
            self.backbone._init_weights(module)

    # ------------------------------------------------------------------ what it is

    @property
    def view(self) -> Backbone:
        """The backbone, as a memory sees it."""
        return family_named(self.config.family or "").build(self.backbone, self.config.special_ids)

    @property
    def fingerprint(self) -> str:
        """Names the weights; the same under dtype, device and adapter merging. States record it."""
        return self._fingerprint.now()()

    def reset_fingerprint(self, known: str | None = None) -> None:
        """Take the fingerprint anew, or as a model folder records it."""
        self._fingerprint = Fingerprint(self, known)

    def keeping_fingerprint(self) -> AbstractContextManager[None]:
        """While weights are written anew to compute the same in another form."""
        return self._fingerprint.kept()

    @property
    def memory_dtype(self) -> torch.dtype:
        """The dtype that memories are kept in."""
        return next((p.dtype for p in self.memory.parameters()), self.dtype)

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """The backbone's."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The backbone's."""
        return self.backbone.get_output_embeddings()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if not hasattr(self, "_fingerprint") or any(p.device.type == "meta" for p in self.parameters()):
            return super()._apply(fn, recurse)
        with self._fingerprint.kept():  # taken before a change of dtype makes the bytes others
            return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> RecurrentMemoryModel:
        copied = memo[id(self)] = type(self).__new__(type(self))
        values = {name: value for name, value in self.__dict__.items() if name != "_fingerprint"}
        copied.__dict__.update(copy.deepcopy(values, memo))
        copied._fingerprint = Fingerprint(copied, self.fingerprint)
        return copied

    # ------------------------------------------------------------------ adapters

    def add_peft_adapter(self, peft_config: Any, name: str = "default") -> None:
        """Put a PEFT adapter (LoRA and its kin) into the backbone; only the adapter and the memory stay trainable."""
        from .adapters import inject

        inject(self, peft_config, name)

    def merge_adapters(self) -> None:
        """Fold the PEFT adapters into the backbone's weights. The fingerprint stays: the model computes the same."""
        from .adapters import merge

        merge(self)

    # ------------------------------------------------------------------ state

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
        self, segment: Segment | Int[Tensor, "B T"], state: MemoryState, *, return_logits: bool = False
    ) -> tuple[StepOutput, MemoryState]:
        """Read one segment and fold it into the memory.

        Args:
            segment: 1…S tokens for every row; a `[B, T]` tensor where all rows are equally long. Rows of length 0 keep
                their memory.
            state: A state with nothing pending.
            return_logits: Whether to run the head at the text positions.

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
        part = segment.rows(rows)
        some, new = self.memory.fold(view, part, {name: t[rows] for name, t in state.tensors.items()})
        hidden = hidden.to(some.dtype).index_copy(
            0, rows, torch.nn.functional.pad(some, (0, 0, 0, hidden.shape[1] - some.shape[1]))
        )
        tensors = {name: t.index_copy(0, rows, new[name].to(t.dtype)) for name, t in state.tensors.items()}
        return hidden, state.folded(tensors, active)

    def fold(self, state: MemoryState) -> MemoryState:
        """Fold what is pending, a partial segment too. Rows with nothing pending stay as they are."""
        if not bool(state.pending_lengths.any()):
            return state
        state = self._going_on(state)
        segment = Segment(state.pending[:, : int(state.pending_lengths.max())], state.pending_lengths)
        return self.fold_segment(segment, state)[1].with_pending(
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
    ) -> MemoryState:
        """Read text into the memory. Runs no head, keeps no more than a segment; no gradients.

        Args:
            input_ids: `[B, T]` of any length.
            attention_mask: `[B, T]`, 0 at padding, on either side.
            memory_state: The state to go on from.

        Returns:
            The state after the text. 1…S tokens are pending (0 only before any text).

        Raises:
            InputError: if ids are out of the vocabulary, or shapes do not agree.
            StateModelMismatchError: if another model wrote the state.
        """
        new, text, state = self.new_text(input_ids, attention_mask, memory_state)
        return self.fold_full(text, state).advanced(new.lengths).detach()

    def fold_full(self, text: Segment, state: MemoryState) -> MemoryState:
        """Fold every full segment of a text that another token follows; the rest becomes pending."""
        length = self.memory_config.segment_length
        folds = num_folded(text.lengths, length)
        first, last = (int(folds.min()), int(folds.max())) if folds.numel() else (0, 0)
        state = self._fold_in_all_rows(text, first, state)
        for index in range(first, last):
            segment = window(text, index * length, length)
            state = self.fold_segment(Segment(segment.input_ids, segment.lengths * (index < folds)), state)[1]
        return state.with_pending(*rest_of(text, folds * length))

    def _fold_in_all_rows(self, text: Segment, count: int, state: MemoryState) -> MemoryState:
        """`fold_segment` for the first segments of a text that are full in every row, without looking at each."""
        length, view, tensors = self.memory_config.segment_length, self.view, state.tensors
        lengths = torch.full_like(text.lengths, length)
        for index in range(count):
            ids = text.input_ids[:, index * length : (index + 1) * length]
            _, tensors = self.memory.fold(view, Segment(ids, lengths, is_full=True), tensors)
        return state.folded(tensors, torch.full_like(lengths, count)) if count else state

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        memory_state: MemoryState | None = None,
        logits_to_keep: int | Tensor | None = None,
        **kwargs: Any,
    ) -> RecurrentMemoryOutput:
        """Read text of any length with gradients, and predict.

        Args:
            input_ids: `[B, T]` new tokens. They continue the text that the state has read.
            attention_mask: `[B, T]`, 0 at padding, on either side.
            labels: Decoders: `[B, T]` as `input_ids`, -100 where there is no loss; shifted here, once, across segment
                boundaries, and the first new token is predicted from the last pending one. Masked LM: `[B, T]`
                unshifted. Classification: `[B]`. Encoder–decoders: `[B, T_out]` for the decoder.
            memory_state: The state to go on from.
            logits_to_keep: Which columns of `input_ids` to give logits for: 0, all; n, the last n; a tensor, those
                indices, or a `[T]` boolean mask. By default all, but none in training with labels, where only the
                loss is wanted: the head then runs at the labelled positions, a segment at a time.
            **kwargs: `num_items_in_batch` (from `Trainer`): the loss is the sum over labels divided by it.

        Returns:
            `loss`, `logits` (new tokens only) and `memory_state`.
        """
        if input_ids is None:
            raise InputError(
                "input_ids is missing; a recurrent-memory model reads token ids (inputs_embeds is not supported)"
            )
        return run_forward(self, input_ids, attention_mask, labels, memory_state, logits_to_keep, kwargs)


AutoConfig.register(RecurrentMemoryConfig.model_type, RecurrentMemoryConfig, exist_ok=True)
AutoModel.register(RecurrentMemoryConfig, RecurrentMemoryModel, exist_ok=True)
AutoModelForCausalLM.register(RecurrentMemoryConfig, RecurrentMemoryModel, exist_ok=True)
__all__ = ["BackboneError", "RecurrentMemoryConfig", "RecurrentMemoryModel", "RecurrentMemoryOutput", "StepOutput"]
