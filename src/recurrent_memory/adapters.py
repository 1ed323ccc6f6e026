"""PEFT adapters inside the backbone."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_config, inject_adapter_in_model
from peft.functional import set_adapter
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from .backbones.four_bits import is_packed
from .errors import ConfigError

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel


def inject(model: RecurrentMemoryModel, peft_config: Any, name: str) -> None:
    """Put an adapter into a model's backbone, and record it so that `save_pretrained` keeps it.

    Raises:
        ConfigError: if the name is taken, or the adapter is of a kind that does not go inside a model.
    """
    if name in model.config.peft:
        raise ConfigError(f"an adapter named {name!r} is already there; choose another name")
    try:
        _put_in(peft_config, model.backbone, name)
    except ValueError as error:
        raise ConfigError(f"the adapter {name!r} ({type(peft_config).__name__}) cannot be put in: {error}") from error
    set_adapter(model.backbone, name)
    model.config.peft = {**model.config.peft, name: plain_config(peft_config)}
    model.reset_fingerprint()


def inject_configs(backbone: PreTrainedModel, configs: dict[str, dict[str, Any]], active: list[str]) -> None:
    """Rebuild the adapters that a configuration records; their weights are loaded afterwards.

    Raises:
        ConfigError: if an adapter is of a kind that does not go inside a model (prompt tuning, shared state).
    """
    for name, values in configs.items():
        try:
            _put_in(get_peft_config(dict(values)), backbone, name)
        except ValueError as error:
            raise ConfigError(
                f"the adapter {name!r} ({values.get('peft_type')}) cannot be kept inside a model: {error} Merge it into the "
                "backbone first, or use another kind"
            ) from error
    set_adapter(backbone, active, inference_mode=all(values.get("inference_mode") for values in configs.values()))


def _put_in(peft_config: Any, backbone: PreTrainedModel, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several are meant
        inject_adapter_in_model(peft_config, backbone, adapter_name=name)


def active_adapters(backbone: PreTrainedModel) -> list[str]:
    """The names of the adapters that are in use."""
    layers = (module for module in backbone.modules() if isinstance(module, BaseTunerLayer))
    return next((list(layer.active_adapters) for layer in layers), [])


def restore_trainable(model: RecurrentMemoryModel) -> None:
    """Freeze what the adapters froze when they were put in; loading weights forgets it."""
    from .loading import build_backbone_model

    with torch.device("meta"):
        trainable = {name: p.requires_grad for name, p in build_backbone_model(model.config).named_parameters()}
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(trainable[name])


def merge(model: RecurrentMemoryModel) -> None:
    """Fold the active adapters into the weights that they adapt, and take all out.

    Raises:
        ConfigError: if these are packed into 4 bits: the sum would be rounded once more, and the model another one.
    """
    if model.config.peft and is_packed(model.backbone):
        raise ConfigError(
            "the adapters are beside weights that are packed into 4 bits, and cannot be merged into them without loss; leave them"
        )
    with model.keeping_fingerprint():
        for name, module in list(model.backbone.named_modules()):
            if isinstance(module, AuxiliaryTrainingWrapper):
                plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            elif isinstance(module, BaseTunerLayer):
                module.merge()
                plain = module.get_base_layer()
            else:
                continue
            parent, _, child = name.rpartition(".")
            setattr(model.backbone.get_submodule(parent), child, plain)
    model.config.peft = {}


def plain_config(peft_config: Any) -> dict[str, Any]:
    """A PEFT configuration as JSON can hold it: no sets, no enums."""

    def plain(value: Any) -> Any:
        if isinstance(value, set | frozenset):
            return sorted(value)
        return value.value if hasattr(value, "value") else value

    return {key: plain(value) for key, value in peft_config.to_dict().items()}
