"""What a training needs besides the weights to go on exactly: optimizer, schedule, scale, random numbers. No pickles.

A nested value of dictionaries, lists, numbers, strings and tensors becomes one safetensors file, its tensors as they are
and the rest as JSON in the header.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..backbones.four_bits import packed_names
from ..errors import RecipeError
from ..files import writing_into
from ..model import RecurrentMemoryModel
from .random_state import RandomState
from .sharding import is_sharded, load_whole

FORMAT = "recurrent-memory-training"


def save_values(values: dict[str, Any], path: Path) -> None:
    """Write a nested value of dictionaries, lists, numbers, strings and tensors.

    Raises:
        TypeError: if something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(values, "", tensors))
    save_file(tensors, path, metadata={"format": FORMAT, "values": text})


def load_values(path: Path) -> dict[str, Any]:
    """The inverse of `save_values`; tuples come back as lists.

    Raises:
        RecipeError: if the file is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(str(path), framework="pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise RecipeError(f"{path}: is not a checkpoint of a training; resume from an older checkpoint")
        return _unpack(json.loads(header["values"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{path}: cannot be read ({error}); resume from an older checkpoint") from error


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs, since JSON has no keys but strings
        items = cast(dict[Any, Any], value).items()
        return {"pairs": [[key, _pack(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in items]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(cast(list[Any], value))]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be kept in a checkpoint")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["pairs"]}
    return [_unpack(item, tensors) for item in cast(list[Any], value)] if isinstance(value, list) else value


def random_states(device: torch.device) -> dict[str, Any]:
    """Where the generators of Python, NumPy and PyTorch stand."""
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # of whoever uses the global one
    now = RandomState.now(device)
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "cpu": now.cpu,
        "device": now.on_device,
    }


def restore_random_states(values: dict[str, Any], device: torch.device) -> None:
    """Put the generators back."""
    version, inner, gauss = values["python"]
    random.setstate((version, tuple(inner), gauss))
    keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    RandomState(values["cpu"], device, values["device"]).restore()


def load_weights(model: RecurrentMemoryModel, folder: str | Path) -> None:
    """Give a model the weights that a folder holds, safetensors all; the model stays the same object.

    Raises:
        BackboneError: if the folder is missing, is not a recurrent-memory model, or its weights are broken.
        RecipeError: if it is another model.
    """
    loaded = RecurrentMemoryModel.from_pretrained(str(folder)).state_dict()
    packed = packed_names(model)
    try:
        if is_sharded(model):
            load_whole(model, loaded)
        elif packed:
            _load_beside(model, loaded, packed)
        else:
            model.load_state_dict(loaded)
    except RuntimeError as error:
        raise RecipeError(f"{folder}: is a checkpoint of another model ({str(error).splitlines()[0]})") from error


def _load_beside(model: RecurrentMemoryModel, weights: dict[str, Tensor], packed: set[str]) -> None:
    """Give a model all weights but the packed ones, which are never trained and have to be the same."""
    own = model.state_dict()
    for name in sorted(packed):
        if name not in weights or not torch.equal(own[name].cpu(), weights.pop(name).cpu()):
            raise RuntimeError(f"{name}: the backbone was packed into other numbers")
    found = model.load_state_dict(weights, strict=False)
    wrong = [*(set(found.missing_keys) - packed), *found.unexpected_keys]
    if wrong:
        raise RuntimeError(f"{sorted(wrong)[0]}: is in one of them only")


@contextmanager
def whole_folder(final: Path, *, is_main: bool, wait: Callable[[], None]) -> Generator[Path]:
    """Give a temporary folder; when the block ends well in every process, it becomes `final` in one step.

    A training that is killed at any moment, or loses power, leaves whole checkpoints, and perhaps a hidden folder `.<name>.tmp`.
    After an error in the block there is none.

    Args:
        final: The folder.
        is_main: Whether this process makes and renames it.
        wait: Returns when all processes have called it.

    Raises:
        OutputError: if the disk is full or read-only.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        with writing_into(temporary):
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            wait()
            yield temporary
            wait()
            if is_main:
                for path in [*temporary.rglob("*"), temporary]:
                    _sync(path)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
                _sync(final.parent)
    except BaseException:
        # What is half-written would only take the space that is missing.
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    wait()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
