"""Backbones and folders: find the class, load it, put adapters in, refuse what is broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from .backbones.base import check_finite
from .backbones.families import HOW_TO_ADD, Family, family_named, find_family
from .backbones.four_bits import check_bitsandbytes, four_bits_of, pack, settings_of_loading
from .config import MemoryConfig
from .configuration import RecurrentMemoryConfig
from .errors import BackboneError, ConfigError, RecurrentMemoryError
from .lean_saving import complete, says_nothing_of_missing_weights

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel


def read_backbone(
    backbone: str | Path | PreTrainedModel,
    memory: MemoryConfig,
    task: str | None,
    num_labels: int | None,
    tokenizer: Any,
    cls_token_id: int | None,
    sep_token_id: int | None,
    kwargs: dict[str, Any],
) -> tuple[PreTrainedModel, RecurrentMemoryConfig]:
    """A loaded backbone and the configuration of the model around it; see `RecurrentMemoryModel.from_backbone`."""
    peft: dict[str, dict[str, Any]] = {}
    given = {"cls_token_id": cls_token_id, "sep_token_id": sep_token_id}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(backbone, str | Path):
        config = _load_config(backbone)
        _check_has_no_memory(config, backbone)
        family = find_family(config)
        auto_class = getattr(transformers, family.auto_class[_known_task(family, task)])
        if num_labels is not None:
            kwargs = {**kwargs, "num_labels": num_labels}
        try:
            model = auto_class.from_pretrained(str(backbone), **kwargs)
        # RuntimeError: weights of other shapes; ImportError: what a quantization_config needs is not installed
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise BackboneError(f"{backbone}: cannot be loaded as a {family.name} ({_first_line(error)})") from error
        if tokenizer is None and family.special_ids is not None and len(given) < 2:
            tokenizer = _tokenizer_beside(backbone)
    else:
        if kwargs:
            raise ConfigError(f"{sorted(kwargs)} are for loading a backbone by name; this one is loaded already")
        model, peft = _unwrap_peft(backbone)
        _check_has_no_memory(model.config, f"this {type(model).__name__}")
        family = find_family(model.config)
        _check_head(model, family, task, num_labels)
    special_ids = family.special_ids(model.config, tokenizer, given) if family.special_ids is not None else {}
    config = RecurrentMemoryConfig(
        backbone=model.config,
        backbone_class=type(model).__name__,
        family=family.name,
        memory=memory.to_dict(),
        special_ids=special_ids,
        peft=peft,
    )
    config.dtype = model.dtype
    check_finite(model)
    if peft:
        from .adapters import active_adapters

        config.peft_active = active_adapters(model)
        with torch.device("meta"):
            build_backbone_model(config)  # so that what cannot be loaded again is refused now
    return model, config


def build_backbone_model(config: RecurrentMemoryConfig, attention: str | None = None) -> PreTrainedModel:
    """The backbone that a configuration describes, adapters inside, its weights not loaded."""
    classes = head_classes(family_named(config.family or ""), config.backbone_config).values()
    cls = next((known for known in classes if known.__name__ == config.backbone_class), None)
    if cls is None:
        raise BackboneError(
            f"backbone_class={config.backbone_class!r} is not known to transformers {transformers.__version__}; upgrade "
            "transformers, or import the package that registers it with the Auto classes"
        )
    kwargs = {"dtype": config.dtype} if config.dtype is not None else {}
    if attention is not None:
        kwargs["attn_implementation"] = attention
    model = cls._from_config(  # pyright: ignore[reportPrivateUsage]
        config.backbone_config, **kwargs
    )
    if (settings := four_bits_of(config.backbone_config)) is not None:
        pack(model, settings)
    if config.peft:
        from .adapters import inject_configs

        inject_configs(model, config.peft, config.peft_active)
    return model


def load_pretrained(
    cls: type[RecurrentMemoryModel],
    load: Callable[..., Any],
    path: str | Path,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """See `RecurrentMemoryModel.from_pretrained`."""
    config = kwargs.get("config")
    if config is None:
        config = _load_config(
            path, {k: kwargs[k] for k in ("revision", "token", "cache_dir", "subfolder") if k in kwargs}
        )
    if config.model_type != RecurrentMemoryConfig.model_type:
        raise BackboneError(
            f"{path}: is a {config.model_type} model without a memory; give it one with RecurrentMemoryModel.from_backbone "
            "and train it (`rmt train`)"
        )
    if (backbone := kwargs.pop("backbone", None)) is not None:
        if config.backbone_source is None:
            raise BackboneError(
                f"{path}: has all of its weights, and no other backbone; leave backbone={str(backbone)!r} out"
            )
        kwargs["config"] = config = copy.deepcopy(config)
        config.backbone_source["name"] = str(backbone)
    if (settings := four_bits_of(config.backbone_config)) is not None:
        check_bitsandbytes(str(path))
        kwargs["config"] = config = copy.deepcopy(config)
        config.quantization_config = settings_of_loading(settings)
        kwargs.setdefault("device_map", {"": "cpu"})  # as all other models
    kwargs["use_safetensors"] = True
    want_info = kwargs.pop("output_loading_info", False)
    is_known = config.backbone_source is not None or settings is not None
    quietly = says_nothing_of_missing_weights() if is_known else nullcontext()
    try:
        with quietly:
            loaded, info = load(str(path), *args, output_loading_info=True, **kwargs)
    except RecurrentMemoryError:
        raise
    except Exception as error:
        raise BackboneError(
            f"{path}: the weights cannot be loaded ({_first_line(error)}); is the folder whole?"
        ) from error
    if settings is not None:
        loaded.hf_quantizer.remove_quantization_config(loaded)  # the backbone has it
        for name in ("_weight_conversions", "hf_device_map"):  # it is saved, and moved, as one that was not loaded
            vars(loaded).pop(name, None)
        for parameter in loaded.parameters():  # transformers leaves some in the dtype that they were saved in
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(loaded.config.dtype)
    missing = set(info["missing_keys"])
    if loaded.config.backbone_source is not None:
        missing = complete(loaded, missing, loaded.config.backbone_source)
    if missing := sorted(missing):
        raise BackboneError(
            f"{path}: the weights lack {missing[:3]}{' …' if len(missing) > 3 else ''}; is the folder whole?"
        )
    check_finite(loaded)
    _lay_out_anew(loaded)
    if loaded.config.peft:
        from .adapters import restore_trainable

        restore_trainable(loaded)
    loaded.reset_fingerprint(loaded.config.fingerprint)
    return (loaded, info) if want_info else loaded


def _lay_out_anew(model: PreTrainedModel) -> None:
    """Weights that are mapped from a file lie at any address, and matrix products round by it.

    Where PyTorch itself would have put them, they compute bit for bit what they did before they were saved.
    """
    for parameter in model.parameters():
        if not parameter.is_meta and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def head_classes(family: Family, config: PretrainedConfig) -> dict[str, type[PreTrainedModel]]:
    """The classes of a model with each of its family's heads, by task, as transformers' Auto classes know them."""
    found = {
        task: getattr(transformers, auto)._model_mapping.get(type(config), None)
        for task, auto in family.auto_class.items()
    }
    return {task: cls for task, cls in found.items() if isinstance(cls, type)}


def _check_has_no_memory(config: PretrainedConfig, what: str | Path) -> None:
    if config.model_type == RecurrentMemoryConfig.model_type:
        raise BackboneError(
            f"{what}: has a memory already; load it with RecurrentMemoryModel.from_pretrained, or give the backbone alone"
        )


def _known_task(family: Family, task: str | None) -> str:
    if task is not None and task not in family.auto_class:
        raise ConfigError(
            f"task={task!r} is not for the family {family.name!r}; choose one of {', '.join(family.auto_class)}"
        )
    return task or next(iter(family.auto_class))


def _check_head(model: PreTrainedModel, family: Family, task: str | None, num_labels: int | None) -> None:
    """A loaded model has its family's head, and the one that was asked for."""
    classes = head_classes(family, model.config)
    if type(model) not in classes.values():
        raise BackboneError(
            f"{type(model).__name__} is not a {family.name} with a head that is known here "
            f"({', '.join(cls.__name__ for cls in classes.values())}); load it with {' or '.join(family.auto_class.values())}, "
            f"or add it: {HOW_TO_ADD}"
        )
    if task is not None and classes.get(_known_task(family, task)) is not type(model):
        raise ConfigError(
            f"task={task!r} does not go with the loaded {type(model).__name__}; leave it out, or load another head"
        )
    if num_labels is not None and num_labels != model.config.num_labels:
        raise ConfigError(
            f"num_labels={num_labels}, but the loaded {type(model).__name__} has {model.config.num_labels}; leave it out, or "
            "load the backbone with as many"
        )


def _load_config(path: str | Path, kwargs: dict[str, Any] | None = None) -> Any:
    folder = Path(path)
    if folder.is_file():
        raise BackboneError(f"{path}: is a file, not a model folder; give the folder that holds config.json")
    if folder.is_dir() and not (folder / "config.json").is_file() and not (kwargs or {}).get("subfolder"):
        raise BackboneError(f"{path}: has no config.json, so it is not a model folder")
    try:
        return AutoConfig.from_pretrained(str(path), **(kwargs or {}))
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"{path}: no model is there, neither as a folder nor on the hub ({_first_line(error)})"
        ) from error


def _tokenizer_beside(path: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, KeyError):
        return None


def _unwrap_peft(model: Any) -> tuple[PreTrainedModel, dict[str, dict[str, Any]]]:
    """A PEFT model's base, adapters in place, and their configurations."""
    configs = getattr(model, "peft_config", None)
    if not configs or not hasattr(model, "get_base_model"):
        return model, {}
    from .adapters import plain_config

    return model.get_base_model(), {name: plain_config(config) for name, config in configs.items()}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
