"""The name of a model's weights: states are refused by models that did not write them.

The fingerprint is the SHA-256 of the weights, taken when the model is made or loaded; moving the model to another
device or dtype, or merging its adapters, keeps it. Anything that changes weights in place (an optimizer,
`load_state_dict`) makes a new one. Told apart by the version counters that PyTorch keeps for each parameter: in-place
updates raise them, `module.to(…)` and adapter merging, which replace the storage, do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .errors import StateError

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel

LENGTH = 32


def hash_weights(model: RecurrentMemoryModel) -> str:
    """SHA-256 of the memory settings, the backbone's shape, and every weight, as 32 hexadecimal digits."""
    digest = hashlib.sha256(repr(sorted(model.memory_config.to_dict().items())).encode())
    digest.update(f"{model.config.family} {model.config.backbone_class}".encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:LENGTH]


class Fingerprint:
    """Keeps a model's fingerprint for as long as its weights stay as they are.

    Args:
        model: The model.
        known: The fingerprint, where a model folder records it.
    """

    def __init__(self, model: RecurrentMemoryModel, known: str | None = None) -> None:
        self._model = model
        self._versions = self._count()
        self._value = known

    def _count(self) -> int:
        return sum(parameter._version for parameter in self._model.parameters())

    @property
    def value(self) -> str:
        """The fingerprint of the weights as they are now."""
        versions = self._count()
        if self._value is None or versions != self._versions:
            self._value, self._versions = hash_weights(self._model), versions
        return self._value

    def source(self) -> Callable[[], str]:
        """The fingerprint of this moment, computed only if somebody asks: states are made far more often than saved."""
        versions, shared = self._count(), self

        def resolve() -> str:
            if shared._count() != versions:
                raise StateError(
                    "the model's weights have changed since it wrote this state (was it trained meanwhile?); read the text again"
                )
            return shared.value

        return resolve
