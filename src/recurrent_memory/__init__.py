"""Read a text of any length into a small, constant memory with a pretrained transformer, and ask it.

The names below are the public ones. Those that need torch or transformers are imported when they are first used, so
that ``import recurrent_memory`` and ``rmt --help`` are quick.

Example:
    >>> import recurrent_memory
    >>> recurrent_memory.__version__
    '0.1.0'
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    BackboneError,
    ConfigError,
    GenerationError,
    InputError,
    OutputError,
    RecipeError,
    RecurrentMemoryError,
    SourceChangedError,
    StateError,
    StateFileError,
    StateModelMismatchError,
)

__version__ = "0.1.0"

__all__ = [
    "BackboneError",
    "ConfigError",
    "GenerationError",
    "InputError",
    "MemoryConfig",
    "MemoryReader",
    "MemoryState",
    "OutputError",
    "RecipeError",
    "RecurrentMemoryConfig",
    "RecurrentMemoryError",
    "RecurrentMemoryModel",
    "SourceChangedError",
    "StateError",
    "StateFileError",
    "StateModelMismatchError",
]

if TYPE_CHECKING:
    from .config import MemoryConfig
    from .inference.reader import MemoryReader
    from .model import RecurrentMemoryConfig, RecurrentMemoryModel
    from .state import MemoryState
else:
    # Hidden from type checkers, which would take a module with `__getattr__` to have every name.
    _MODULE_OF = {
        "MemoryConfig": "recurrent_memory.config",
        "MemoryReader": "recurrent_memory.inference.reader",
        "MemoryState": "recurrent_memory.state",
        "RecurrentMemoryConfig": "recurrent_memory.model",
        "RecurrentMemoryModel": "recurrent_memory.model",
    }

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A program that has paid for transformers already expects its Auto classes to know our models at once.
# `recurrent_memory.model` registers them when it is imported.
if "transformers" in sys.modules:
    import_module("recurrent_memory.model")
