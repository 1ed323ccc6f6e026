"""PEFT adapters inside the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import get_peft_config, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from .errors import ConfigError

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel


def inject(model: RecurrentMemoryModel, peft_config: Any, name: str) -> None:
    """Put an adapter into a model's backbone, and record it so that `save_pretrained` keeps it."""
    if name in model.config.peft:
        raise ConfigError(f"an adapter named {name!r} is already there; choose another name")
    inject_adapter_in_model(peft_config, model.backbone, adapter_name=name)
    model.config.peft = {**model.config.peft, name: plain_config(peft_config)}
    for parameter in model.memory.parameters():
        parameter.requires_grad_(True)
    model.reset_fingerprint()


def inject_configs(backbone: PreTrainedModel, configs: dict[str, dict[str, Any]]) -> None:
    """Rebuild the adapters that a configuration records; their weights are loaded afterwards."""
    for name, values in configs.items():
        inject_adapter_in_model(get_peft_config(dict(values)), backbone, adapter_name=name)


def merge(model: RecurrentMemoryModel) -> None:
    """Fold every adapter into the weights it adapts, and take it out."""
    known = model.fingerprint
    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.backbone.get_submodule(parent), child, module.get_base_layer())
    model.config.peft = {}
    model.reset_fingerprint(known)


def plain_config(peft_config: Any) -> dict[str, Any]:
    """A PEFT configuration as JSON can hold it: no sets, no enums."""

    def plain(value: Any) -> Any:
        if isinstance(value, set | frozenset):
            return sorted(value)
        return value.value if hasattr(value, "value") else value

    return {key: plain(value) for key, value in peft_config.to_dict().items()}
