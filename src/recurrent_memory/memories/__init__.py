"""Ways of remembering: one file each, one small protocol."""

from .registry import memory_class, memory_kinds, register_memory

__all__ = ["memory_class", "memory_kinds", "register_memory"]
