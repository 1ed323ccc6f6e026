"""Which parameters are trained: the memory alone, the memory and a LoRA adapter, or everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from ..backbones.encoder import EncoderBackbone
from ..errors import ConfigError
from ..model import RecurrentMemoryModel

Trained = Literal["memory", "lora", "all"]
ADAPTER = "lora"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A LoRA adapter; Hu et al., arXiv:2106.09685.

    Args:
        r: Its rank.
        alpha: Its scale is alpha / r.
        target_modules: Names of the layers that it goes into, by their ends; None: peft's choice for the family.

    Raises:
        ConfigError: if a number is below 1.
    """

    r: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} of a LoRA adapter must be at least 1")


def choose_trained(model: RecurrentMemoryModel, trained: Trained, lora: LoraSettings | None = None) -> None:
    """Set which parameters get gradients; for "lora" put the adapter in, if it is not there.

    Args:
        model: The model.
        trained: "memory": the parameters of the memory. "lora": those, and the adapter's. "all": every one. The head of a
            classifier, which no pretrained model brings, is trained in any case. Without memory tokens the memory has
            nothing to train, and "lora" is a fine-tuned model without memory.
        lora: The adapter; only for "lora".

    Raises:
        ConfigError: if `trained` is not known, `lora` is given without being asked for, the adapter does not go in, weights in
            4 bits are to be trained, or nothing is left to train.

    Example:
        >>> choose_trained(model, "lora", LoraSettings(r=16, alpha=32, target_modules=("c_attn",)))
    """
    if trained not in get_args(Trained):
        raise ConfigError(f"trained={trained!r} is not known; choose one of {', '.join(get_args(Trained))}")
    if trained != "lora" and lora is not None:
        raise ConfigError(f"lora is given, but trained={trained!r}; set trained='lora', or leave lora out")
    if trained == "lora" and ADAPTER not in model.config.peft:
        model.add_peft_adapter(_adapter(model, lora or LoraSettings()), ADAPTER)
    view = model.view
    classifies = isinstance(view, EncoderBackbone) and view.classifies
    remembers = model.memory_config.num_memory_tokens > 0
    body = f"backbone.{model.backbone.base_model_prefix}."
    for name, parameter in model.named_parameters():
        if name.startswith("memory."):
            parameter.requires_grad_(remembers)
            continue
        of_head = classifies and not name.startswith(body)
        of_adapter = trained == "lora" and f".{ADAPTER}." in f"{name}."
        is_trained = trained == "all" or of_head or of_adapter
        if is_trained and not parameter.is_floating_point():
            raise ConfigError(
                f"trained={trained!r}: {name} is packed into 4 bits, and cannot be trained; take 'lora' or 'memory', and no "
                "classifier, or a backbone in its own dtype"
            )
        parameter.requires_grad_(is_trained)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"trained={trained!r} with num_memory_tokens=0 leaves nothing to train; set trained='lora' or trained='all'"
        )


def _adapter(model: RecurrentMemoryModel, lora: LoraSettings) -> LoraConfig:
    targets = None if lora.target_modules is None else list(lora.target_modules)
    # GPT-2's layers keep their weights transposed; peft wants to be told.
    transposed = any(
        isinstance(module, Conv1D) and (targets is None or name.endswith(tuple(targets)))
        for name, module in model.backbone.named_modules()
    )
    return LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, fan_in_fan_out=transposed)
