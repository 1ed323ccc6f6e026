"""What an experiment begins with: a backbone that is given a memory, or a model that has one already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from ..backbones.encoder import EncoderBackbone
from ..backbones.families import find_family
from ..backbones.four_bits import is_packed
from ..config import MemoryConfig
from ..configuration import RecurrentMemoryConfig
from ..errors import ConfigError
from ..model import RecurrentMemoryModel
from ..models import SHIPPED, load_model


@dataclass(frozen=True, slots=True)
class Beginning:
    """What is known of a model before it is made.

    Args:
        family: Of its backbone.
        classifies: Whether it has a head that names classes.
        segment_length: S.
        tokenizer: Loads the tokenizer.
        build: Makes the model; takes the names of the classes, and their number where there are none.
        bare: Whether a backbone is loaded from where it is named, as it is there, and not from under a memory.
    """

    family: str
    classifies: bool
    segment_length: int
    tokenizer: Callable[[], Any]
    build: Callable[[Sequence[str], int | None], RecurrentMemoryModel]
    bare: bool = False


def begin_with_backbone(name: str, memory: MemoryConfig, task: str | None, loading: dict[str, Any]) -> Beginning:
    """A backbone that is given a memory.

    Args:
        name: A hub id or a folder; where a model with a memory is there, what is under it, adapters merged. "shipped": what
            is under the memory of the model in the package.
        memory: The memory's settings.
        task: As for `RecurrentMemoryModel.from_backbone`.
        loading: Likewise, what is passed on to the backbone's `from_pretrained`.

    Raises:
        BackboneError, OSError: if there is no such backbone, or it is not supported.
        ConfigError: if what is passed on is not for the backbone in the package, or for one that is under a memory already, or
            the weights under that memory are in 4 bits.
    """
    backbone: Any = name
    tokenizer: Any = None
    config = None if name == SHIPPED else AutoConfig.from_pretrained(name)
    if config is None or isinstance(config, RecurrentMemoryConfig):
        if "quantization_config" in loading:
            what = (
                "the backbone in the package is far too small for 4 bits"
                if config is None
                else f"{name} is loaded whole"
            )
            raise ConfigError(f"lora.bits: {what}; leave it out")
        other, tokenizer = load_model(name, "cpu", "float32", merged=True)
        if is_packed(other.backbone):
            raise ConfigError(
                f"{name}: is in 4 bits, and its adapters cannot be merged into what is under its memory; train it further as model:"
            )
        backbone, loading = other.backbone, {}
        config = backbone.config

    def build(classes: Sequence[str], num_labels: int | None) -> RecurrentMemoryModel:
        count = num_labels if num_labels is not None or not classes else len(classes)
        model = RecurrentMemoryModel.from_backbone(backbone, memory, task=task, num_labels=count, **loading)
        if classes:  # what an answer is called, so that the model can be asked in words
            names = dict(enumerate(classes))
            model.backbone.config.update({"id2label": names, "label2id": {text: n for n, text in names.items()}})
        return model

    return Beginning(
        find_family(config).name,
        task == "sequence-classification",
        memory.segment_length,
        lambda: AutoTokenizer.from_pretrained(name) if backbone is name else tokenizer,
        build,
        bare=backbone is name,
    )


def begin_with_model(name: str, seed: int) -> Beginning:
    """A model that is trained further.

    Args:
        name: A folder, a hub id, or "shipped".
        seed: Random numbers after loading it begin here.

    Raises:
        BackboneError: if there is no such model, or no tokenizer beside it.
    """
    model, tokenizer = load_model(name, "cpu", "float32")
    torch.manual_seed(seed)
    view = model.view

    def build(classes: Sequence[str], _num_labels: int | None) -> RecurrentMemoryModel:
        labels: dict[int, str] = getattr(model.backbone.config, "id2label", None) or {}
        known = [labels[number] for number in sorted(labels)]
        if classes and list(classes) != known:
            raise ConfigError(
                f"{name}: names the classes {', '.join(known)}, the tasks have {', '.join(classes)}; train a backbone instead"
            )
        return model

    return Beginning(
        model.config.family or "",
        isinstance(view, EncoderBackbone) and view.classifies,
        model.memory_config.segment_length,
        lambda: tokenizer,
        build,
    )
