"""Backbones and folders: find the class, load it, put adapters in, refuse what is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from .backbones.families import Family, find_family, resolve_special_ids
from .config import MemoryConfig
from .configuration import RecurrentMemoryConfig
from .errors import BackboneError, ConfigError, RecurrentMemoryError

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
    if isinstance(backbone, str | Path):
        config = _load_config(backbone)
        family = find_family(config)
        auto_class = getattr(transformers, _auto_class(family, task))
        if num_labels is not None:
            kwargs = {**kwargs, "num_labels": num_labels}
        try:
            model = auto_class.from_pretrained(str(backbone), **kwargs)
        except (OSError, ValueError) as error:
            raise BackboneError(f"{backbone}: cannot be loaded as a {family.name} ({_first_line(error)})") from error
        if tokenizer is None and family.name == "encoder" and (cls_token_id is None or sep_token_id is None):
            tokenizer = _tokenizer_beside(backbone)
    else:
        if kwargs:
            raise ConfigError(f"{sorted(kwargs)} are for loading a backbone by name; this one is loaded already")
        model, peft = _unwrap_peft(backbone)
        family = find_family(model.config)
        if task is not None and task not in family.auto_class:
            raise ConfigError(f"task={task!r} is not one of a {family.name}: {', '.join(family.auto_class)}")
        if model.base_model is model:
            raise BackboneError(
                f"{type(model).__name__} has no head; load the backbone with one, such as {' or '.join(family.auto_class.values())}"
            )
    special_ids = resolve_special_ids(family, model.config, tokenizer, cls_token_id, sep_token_id)
    config = RecurrentMemoryConfig(
        backbone=model.config,
        backbone_class=type(model).__name__,
        family=family.name,
        memory=memory.to_dict(),
        special_ids=special_ids,
        peft=peft,
    )
    config.dtype = model.dtype
    return model, config


def build_backbone_model(config: RecurrentMemoryConfig) -> PreTrainedModel:
    """The backbone that a configuration describes, adapters inside, its weights not loaded."""
    name = config.backbone_class or ""
    cls = getattr(transformers, name, None)
    if cls is None:
        raise BackboneError(f"backbone_class={name!r} is not in transformers {transformers.__version__}; upgrade transformers")
    kwargs = {"dtype": config.dtype} if config.dtype is not None else {}
    if implementation := getattr(config, "_attn_implementation", None):
        kwargs["attn_implementation"] = implementation
    model = cls._from_config(config.backbone_config, **kwargs)
    if config.peft:
        from .adapters import inject_configs

        inject_configs(model, config.peft)
    return model


def load_pretrained(
    cls: type[RecurrentMemoryModel], load: Callable[..., Any], path: str | Path, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RecurrentMemoryModel:
    """See `RecurrentMemoryModel.from_pretrained`."""
    config = kwargs.get("config")
    if config is None:
        config = _load_config(path, {k: kwargs[k] for k in ("revision", "token", "cache_dir", "subfolder") if k in kwargs})
    if config.model_type != RecurrentMemoryConfig.model_type:
        raise BackboneError(
            f"{path}: is a {config.model_type} model without a memory; give it one with RecurrentMemoryModel.from_backbone "
            "and train it (`rmt train`)"
        )
    kwargs["use_safetensors"] = True
    want_info = kwargs.pop("output_loading_info", False)
    try:
        loaded, info = load(str(path), *args, output_loading_info=True, **kwargs)
    except RecurrentMemoryError:
        raise
    except Exception as error:
        raise BackboneError(f"{path}: the weights cannot be loaded ({_first_line(error)}); is the folder whole?") from error
    if missing := sorted(info["missing_keys"]):
        raise BackboneError(f"{path}: the weights lack {missing[:3]}{' …' if len(missing) > 3 else ''}; is the folder whole?")
    loaded.view.check_weights()
    loaded.reset_fingerprint(loaded.config.fingerprint)
    return (loaded, info) if want_info else loaded


def _auto_class(family: Family, task: str | None) -> str:
    if task is None:
        return next(iter(family.auto_class.values()))
    if task not in family.auto_class:
        raise ConfigError(f"task={task!r} is not one of a {family.name}: {', '.join(family.auto_class)}")
    return family.auto_class[task]


def _load_config(path: str | Path, kwargs: dict[str, Any] | None = None) -> Any:
    folder = Path(path)
    if folder.is_file():
        raise BackboneError(f"{path}: is a file, not a model folder; give the folder that holds config.json")
    if folder.is_dir() and not (folder / "config.json").is_file() and not (kwargs or {}).get("subfolder"):
        raise BackboneError(f"{path}: has no config.json, so it is not a model folder")
    try:
        return AutoConfig.from_pretrained(str(path), **(kwargs or {}))
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{path}: no model is there, neither as a folder nor on the hub ({_first_line(error)})") from error


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
