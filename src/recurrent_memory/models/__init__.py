"""The model that comes with the package, and finding any other by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError, ConfigError

if TYPE_CHECKING:
    import torch

    from ..model import RecurrentMemoryModel

SHIPPED = "shipped"
DTYPES = ("float32", "bfloat16", "float16", "float64")
INT8 = "int8"


def shipped_model_path() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).parent / "small"


def default_model(device: str = "auto", dtype: str = "auto") -> tuple[RecurrentMemoryModel, Any]:
    """The model that comes with the package, and its tokenizer; see `load_model`."""
    return load_model(None, device, dtype)


def load_model(
    name_or_path: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    *,
    backbone: str | Path | None = None,
    merged: bool = False,
) -> tuple[RecurrentMemoryModel, Any]:
    """Load a recurrent-memory model and its tokenizer.

    Args:
        name_or_path: A folder, a hub id, or None ("shipped") for the model that comes with the package.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps" …
        dtype: "float32", "bfloat16", "float16", "float64", or "auto": float32 on a CPU, the model's own elsewhere. "int8":
            see `RecurrentMemoryModel.to_int8`.
        backbone: Where the backbone of a model is that was saved without it; by default where it was when it was saved.
        merged: Whether adapters are added to the weights below them, where these are numbers of more than 4 or 8 bits: to
            read with, faster; not to train further.

    Returns:
        The model, in evaluation mode, and the tokenizer that lies beside it.

    Raises:
        BackboneError: if there is no such model, it has no memory or no tokenizer, or it is broken.
        ConfigError: if the device or the dtype is not there.

    Example:
        >>> model, tokenizer = load_model()
    """
    where = choose_device(device)
    number = choose_dtype("float32" if dtype == INT8 else dtype, where)
    place = _place(name_or_path)
    from transformers import AutoTokenizer

    from ..model import RecurrentMemoryModel

    given = {"dtype": number, "backbone": backbone}
    model = RecurrentMemoryModel.from_pretrained(place, **{k: v for k, v in given.items() if v is not None})
    if merged and not getattr(model.backbone, "is_quantized", False):  # in 4 bits the sum would be rounded once more
        model.merge_adapters()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BackboneError(
            f"{place}: there is no tokenizer beside the model ({reason}); save it there: tokenizer.save_pretrained(folder)"
        ) from error
    try:
        moved: Any = model.to(where)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"--device {device}: the model cannot be moved there ({_first_line(error)}); try --device cpu"
        ) from error
    if dtype == INT8:
        moved.to_int8()
    return moved.eval(), tokenizer


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: if it does not exist here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name}: is not available here ({_first_line(error)}); use --device auto or cpu"
        ) from error
    if device.type == "meta":
        raise ConfigError(f"--device {name}: holds no numbers; use --device auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of that name; None for the model's own.

    Raises:
        ConfigError: if there is none, or the device cannot compute with it.
    """
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise ConfigError(
            f"--dtype {name}: is not one of auto, {', '.join(DTYPES)} (or int8, for a model with a memory, on a CPU)"
        )
    dtype: torch.dtype = getattr(torch, name)
    try:
        torch.ones(2, 2, device=device, dtype=dtype).matmul(torch.ones(2, 2, device=device, dtype=dtype))
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"--dtype {name}: cannot be computed with on {device} ({_first_line(error)}); use float32"
        ) from error
    return dtype


def recorded_name(name_or_path: str | Path | None) -> str:
    """What a state records of its model, so that it is found again from another folder."""
    if name_or_path is None or str(name_or_path) == SHIPPED:
        return SHIPPED
    path = Path(name_or_path).expanduser()
    return str(path.resolve()) if path.exists() else str(name_or_path)


def _place(name_or_path: str | Path | None) -> str:
    if name_or_path is None or str(name_or_path) == SHIPPED:
        folder = shipped_model_path()
        if not (folder / "config.json").is_file():
            raise BackboneError(
                "this installation comes without a model; name one with --model FOLDER, or install the package again"
            )
        return str(folder)
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    # Two names with one slash between them may be a model on the hub; anything else that is not there is a slip.
    if isinstance(name_or_path, Path) or not name or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise BackboneError(f"{name!r}: there is no such model folder; give the folder that holds config.json")
    return name


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
