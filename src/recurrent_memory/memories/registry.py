"""The kinds of memory by name. A kind is one file; adding one changes nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from .base import Memory

_KINDS: dict[str, str] = {
    "tokens": "recurrent_memory.memories.tokens:TokenMemory",
    "associative": "recurrent_memory.memories.associative:AssociativeMemory",
    "per-layer": "recurrent_memory.memories.per_layer:PerLayerMemory",
}


def memory_kinds() -> list[str]:
    """The names that `MemoryConfig(kind=…)` accepts."""
    return sorted(_KINDS)


def register_memory(kind: str, location: str) -> None:
    """Add a kind of memory. `location` is "package.module:Class"; the class follows `memories.base.Memory`.

    Raises:
        ConfigError: if the name is taken.
    """
    if _KINDS.get(kind, location) != location:
        raise ConfigError(f"kind={kind!r} is already registered as {_KINDS[kind]}; choose another name")
    _KINDS[kind] = location


def memory_class(kind: str) -> type[Memory]:
    """The class of a kind, imported when it is first asked for."""
    module, _, name = _KINDS[kind].partition(":")
    return getattr(import_module(module), name)
