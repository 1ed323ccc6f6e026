"""Backbones whose linear layers are packed into 4 bits by bitsandbytes, to train an adapter beside them (QLoRA).

Dettmers et al.: QLoRA, arXiv:2305.14314. The packed numbers are saved with the model, as they are, and a model that is loaded
computes with the same ones; none is rounded twice.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import is_bitsandbytes_available

from ..errors import ConfigError

_EVERYTHING = ".*"


def check_bitsandbytes(what: str) -> None:
    """See that 4 bits can be computed with here.

    Args:
        what: What asks for them.

    Raises:
        ConfigError: if bitsandbytes is not installed.
    """
    if not is_bitsandbytes_available():
        raise ConfigError(
            f"{what}: 4 bits are computed by bitsandbytes, which is not installed; pip install 'recurrent-memory[four-bit]', "
            "or take a backbone in its own dtype"
        )


def four_bits_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """How the weights of a backbone are packed, by its configuration; None: they are not, or not by bitsandbytes into 4 bits."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is not None and not isinstance(settings, dict):
        settings = settings.to_dict()
    return settings if settings and settings.get("load_in_4bit") else None


def is_packed(model: nn.Module) -> bool:
    """Whether weights of a model are packed into 4 bits."""
    return any(_is_packed(parameter) for parameter in model.parameters())


def packed_names(model: nn.Module) -> set[str]:
    """What of a model's `state_dict` are packed weights, and the scales that belong to them."""
    packed = [name for name, parameter in model.named_parameters() if _is_packed(parameter)]
    return {
        name for name in model.state_dict() if any(name == weight or name.startswith(f"{weight}.") for weight in packed)
    }


def pack(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Make the linear layers of a model without weights such as packed weights can be loaded into.

    Raises:
        ConfigError: if bitsandbytes is not installed.
    """
    check_bitsandbytes(type(model).__name__)
    AutoHfQuantizer.from_config(dict(settings), pre_quantized=True).preprocess_model(model=model, device_map=None)
    model.is_loaded_in_4bit = True  # peft asks for it  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def settings_of_loading(settings: dict[str, Any]) -> dict[str, Any]:
    """What transformers is told so that it loads packed weights, and packs no further ones: all layers are made."""
    return {**settings, "llm_int8_skip_modules": [_EVERYTHING]}


def keep_layout(model: nn.Module) -> None:
    """Have packed weights stay as they are.

    On some CPUs bitsandbytes lays them out anew at the first evaluation: scales are rounded to bfloat16, and nothing that comes
    after has a gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def _is_packed(parameter: nn.Parameter) -> bool:
    return type(parameter).__name__ == "Params4bit"
