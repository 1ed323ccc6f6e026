"""One exception tree. Every error a user can cause names the argument, the value, what is accepted and what to do."""


class RecurrentMemoryError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(RecurrentMemoryError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class BackboneError(RecurrentMemoryError, ValueError):
    """A backbone that is not supported, does not fit, or is broken (NaN weights, no memory in the folder)."""


class StateError(RecurrentMemoryError, ValueError):
    """A memory state that cannot be used: damaged, foreign, of another model, or of the wrong shape."""


class StateFileError(StateError):
    """A state file that is missing, truncated, not a safetensors file, or not ours."""


class StateModelMismatchError(StateError):
    """A state that another model wrote."""


class InputError(RecurrentMemoryError, ValueError):
    """Text or token ids that cannot be read: missing, empty, binary, wrongly encoded, out of the vocabulary."""


class SourceChangedError(InputError):
    """A text that is not the one an interrupted reading began with."""


class GenerationError(RecurrentMemoryError, ValueError):
    """A way of generating that a recurrent memory does not support."""


class RecipeError(RecurrentMemoryError, ValueError):
    """A training recipe that is not valid."""


class OutputError(RecurrentMemoryError, OSError):
    """A file that could not be written: it exists, the disk is full, no permission."""
