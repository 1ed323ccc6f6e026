"""Rows of datasets on the Hugging Face hub, through the optional package `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import InputError


def hub_rows(what: str, source: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """The rows of a dataset.

    Args:
        what: The setting that names it, for errors.
        source: Its id.
        *args: For `datasets.load_dataset`, such as a configuration.
        **kwargs: Likewise, such as `split` or `streaming`.

    Raises:
        InputError: if `datasets` is not installed, or it cannot be loaded.
    """
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{what} {source}: no such path; to load it from the hub, `pip install datasets`") from error
    try:
        yield from load_dataset(source, *args, **kwargs)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} {source}: no such path, and not loadable from the hub ({reason})") from error
