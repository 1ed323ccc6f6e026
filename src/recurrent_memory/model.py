"""The recurrent-memory model: any backbone, any kind of memory, one function `step(segment, state)` in several loops."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from .backbones.families import check_attention
from .backbones.four_bits import is_packed, keep_layout
from .backbones.int8 import compute_dtype, is_quantized, quantize_layers
from .config import MemoryConfig
from .configuration import RecurrentMemoryConfig
from .errors import BackboneError, ConfigError, InputError
from .files import writing_into
from .fingerprint import Fingerprint, hash_weights
from .forward import run_forward
from .inference.generation import GenerationWithMemory
from .inference.open_state import OpenState
from .lean_saving import LeftOut, left_out
from .loading import build_backbone_model, load_pretrained, read_backbone
from .memories.base import Memory
from .memories.registry import memory_class
from .modeling_output import RecurrentMemoryOutput, StepOutput
from .reading import ReadsInSegments
from .state import MemoryState


class RecurrentMemoryModel(GenerationWithMemory, ReadsInSegments, GenerationMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
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
        keep_layout(self.backbone)
        self.loss_type = self.view.loss_type
        if not any(parameter.is_meta for parameter in self.backbone.parameters()):
            for module in self.backbone.modules():  # an adapter's layers too: nothing that is there is drawn anew
                module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]
        self.memory_config = config.memory_config
        self.memory = memory_class(self.memory_config.kind)(self.memory_config, self.view)
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

        Args:
            pretrained_model_name_or_path: The folder, or its hub id.
            *args: As of `PreTrainedModel.from_pretrained`.
            **kwargs: The same, such as `dtype`; and `backbone`, where the rest of the weights of a model that was saved without
                its backbone is now, if not where it was.

        Raises:
            BackboneError: if the folder is missing, is not a recurrent-memory model, or its weights are broken.
            ConfigError: if its weights are packed into 4 bits, and bitsandbytes is not installed.

        Example:
            >>> RecurrentMemoryModel.from_pretrained("memory", backbone="copies/gpt2")
        """
        return load_pretrained(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, *, backbone: str | Path | LeftOut | None = None, **kwargs: Any
    ) -> None:
        """Write `config.json` and safetensors into a folder, PEFT adapters inside.

        Args:
            save_directory: The folder.
            backbone: The hub id or the folder that the backbone came from: what is there as it is here is left out, and
                loaded from there with the model. A memory and an adapter take a few megabytes. Or what `left_out` has found so.
            **kwargs: As of `PreTrainedModel.save_pretrained`, such as the weights in place of the model's own, `state_dict`.

        Raises:
            ConfigError: if the model computes in int8.
            BackboneError: if `backbone` cannot be loaded, or has nothing in common with this one.
            OutputError: if the disk is full or read-only.

        Example:
            >>> model.save_pretrained("memory", backbone="gpt2")
        """
        if is_quantized(self.backbone):
            raise ConfigError(
                "a model in int8 cannot be saved, its weights are rounded; load it in float32 and save that"
            )
        given = kwargs.get("state_dict")
        self.config.fingerprint = self.fingerprint if given is None else hash_weights(self, given)
        self.config.architectures = [type(self).__name__]
        if self.config.peft:
            from .adapters import active_adapters

            self.config.peft_active = active_adapters(self.backbone)
        self.config.backbone_source = None
        if backbone is not None:
            weights = self.state_dict() if given is None else given
            left = backbone if isinstance(backbone, LeftOut) else left_out(self, weights, str(backbone))
            kwargs["state_dict"] = {name: tensor for name, tensor in weights.items() if name not in left.names}
            self.config.backbone_source = left.source
        with writing_into(save_directory):
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
        """Fold the PEFT adapters into the backbone's weights. The fingerprint stays: the model computes the same.

        Raises:
            ConfigError: if the weights are packed into 4 bits.
        """
        from .adapters import merge

        merge(self)

    # ------------------------------------------------------------------ int8

    def to_int8(self) -> None:
        """Compute the layers' matrix products in eight bits from here on; there is no way back, and no training.

        Weights are rounded by output channel, what they are multiplied with by position; the memory stays in float32. It is
        faster on a CPU, and nearly the same: measure the accuracy before you rely on it. Adapters are merged first. The
        fingerprint stays, as under a change of dtype: states go from one to the other.

        Raises:
            ConfigError: if the model is not in float32 on a CPU, its layers have no linear modules, or its weights are packed into
                4 bits.
            BackboneError: if the model has no list of layers.
        """
        if is_quantized(self.backbone):
            return
        if is_packed(self.backbone):
            raise ConfigError(
                "int8: the weights of this model are packed into 4 bits already; take float32 or bfloat16"
            )
        self.merge_adapters()
        with self.keeping_fingerprint():
            quantize_layers(self.view)
            self.requires_grad_(False)

    @property
    def compute_dtype(self) -> str:
        """What the layers compute in: `int8`, or the name of the model's dtype."""
        return compute_dtype(self)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        memory_state: MemoryState | OpenState | None = None,
        logits_to_keep: int | Tensor | None = None,
        schedule: str = "sequential",
        **kwargs: Any,
    ) -> RecurrentMemoryOutput:
        """Read text of any length with gradients, and predict.

        Args:
            input_ids: `[B, T]` new tokens. They continue the text that the state has read.
            attention_mask: `[B, T]`, 0 at padding, on either side.
            labels: Decoders: `[B, T]` as `input_ids`, -100 where there is no loss; shifted here, once, across segment
                boundaries, and the first new token is predicted from the last pending one. Masked LM: `[B, T]`
                unshifted. Classification: `[B]`. Encoder–decoders: `[B, T_out]` for the decoder.
            memory_state: The state to go on from. An `OpenState`, as generation uses it, goes on in place: there are no
                labels then, the logits are those after the last token, and it holds the state itself.
            logits_to_keep: Which columns of `input_ids` to give logits for: 0, all; n, the last n; a tensor, those
                indices, or a `[T]` boolean mask. By default all, but none in training with labels, where only the
                loss is wanted: the head then runs at the labelled positions, a segment at a time.
            schedule: As for `read`.
            **kwargs: `num_items_in_batch` (from `Trainer`): the loss is the sum over labels divided by it.

        Returns:
            `loss`, `logits` (new tokens only) and `memory_state`.
        """
        if input_ids is None:
            raise InputError(
                "input_ids is missing; a recurrent-memory model reads token ids (inputs_embeds is not supported)"
            )
        if isinstance(memory_state, OpenState):
            return RecurrentMemoryOutput(logits=memory_state.read(input_ids, attention_mask))
        return run_forward(self, input_ids, attention_mask, labels, memory_state, logits_to_keep, schedule, kwargs)


AutoConfig.register(RecurrentMemoryConfig.model_type, RecurrentMemoryConfig, exist_ok=True)
AutoModel.register(RecurrentMemoryConfig, RecurrentMemoryModel, exist_ok=True)
AutoModelForCausalLM.register(RecurrentMemoryConfig, RecurrentMemoryModel, exist_ok=True)
__all__ = ["BackboneError", "RecurrentMemoryConfig", "RecurrentMemoryModel", "RecurrentMemoryOutput", "StepOutput"]
