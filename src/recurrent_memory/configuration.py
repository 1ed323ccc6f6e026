"""The configuration of a recurrent-memory model: its backbone's, its memory's, and what a row needs."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from .config import MemoryConfig
from .errors import BackboneError


class RecurrentMemoryConfig(PretrainedConfig):
    """A backbone's configuration and a `MemoryConfig`, as one `config.json`.

    Args:
        backbone: The backbone's own configuration, or its dictionary.
        backbone_class: The transformers class of the backbone, such as `GPT2LMHeadModel`.
        family: The backbone's family.
        memory: The memory's settings, as `MemoryConfig.to_dict` gives them.
        special_ids: Special token ids that the rows need.
        peft: The PEFT adapters inside the backbone: name to configuration.
        peft_active: The names of those in use.
        fingerprint: Of the weights, written by `save_pretrained`.
        backbone_source: Where the weights are that `save_pretrained(…, backbone=NAME)` left out.
    """

    model_type = "recurrent-memory"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["memory_state"]  # `Trainer` gathers tensors only

    def __init__(
        self,
        backbone: dict[str, Any] | PretrainedConfig | None = None,
        backbone_class: str | None = None,
        family: str | None = None,
        memory: dict[str, Any] | None = None,
        special_ids: dict[str, int] | None = None,
        peft: dict[str, dict[str, Any]] | None = None,
        peft_active: list[str] | None = None,
        fingerprint: str | None = None,
        backbone_source: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone, dict):
            values = dict(backbone)
            backbone = AutoConfig.for_model(values.pop("model_type"), **values)
        self.backbone = backbone
        self.backbone_class = backbone_class
        self.family = family
        self.memory = memory if memory is not None else MemoryConfig().to_dict()
        self.special_ids = special_ids or {}
        self.peft = peft or {}
        self.peft_active = peft_active or list(self.peft)[-1:]
        self.fingerprint = fingerprint
        self.backbone_source = backbone_source
        if backbone is not None:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "is_encoder_decoder"):
                kwargs.setdefault(name, getattr(backbone, name, None))
            kwargs.setdefault("tie_word_embeddings", getattr(backbone, "tie_word_embeddings", True))
            kwargs["is_encoder_decoder"] = bool(kwargs["is_encoder_decoder"])
        super().__init__(**kwargs)

    @property
    def memory_config(self) -> MemoryConfig:
        """The memory's settings, validated."""
        return MemoryConfig.from_dict(dict(self.memory))

    @property
    def backbone_config(self) -> PretrainedConfig:
        """The backbone's configuration.

        Raises:
            BackboneError: if there is none.
        """
        if self.backbone is None or isinstance(self.backbone, dict):
            raise BackboneError(
                "this configuration names no backbone; make the model with RecurrentMemoryModel.from_backbone"
            )
        return self.backbone

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, the backbone's configuration inside."""
        values = super().to_dict()
        if isinstance(self.backbone, PretrainedConfig):
            values["backbone"] = self.backbone.to_dict()
        return values
