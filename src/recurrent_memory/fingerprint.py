"""The name of a model's weights: states are refused by models that did not write them.

The fingerprint is the SHA-256 of the weights, taken when the model is made or loaded; moving the model to another
device or dtype, or merging its adapters, keeps it. Anything that changes weights in place (an optimizer,
`load_state_dict`) makes a new one. Such changes are seen by the version counters that PyTorch keeps for each parameter,
so that weights are hashed only when they have changed and somebody asks. Fused optimizers, which `Trainer` takes, do not count:
their steps are counted here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .errors import StateError

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel

LENGTH = 32
# By the id of a parameter. One that takes the id of another begins with its steps: all that counts is that they change.
_FUSED_STEPS: dict[int, int] = {}


def _count(optimizer: Optimizer, *_: Any) -> None:
    for parameter in (p for group in optimizer.param_groups if group.get("fused") for p in group["params"]):
        if parameter.grad is not None:
            _FUSED_STEPS[id(parameter)] = _FUSED_STEPS.get(id(parameter), 0) + 1


register_optimizer_step_post_hook(_count)


def hash_weights(model: RecurrentMemoryModel, weights: dict[str, Tensor] | None = None) -> str:
    """SHA-256 of the memory settings, the backbone's shape, and every weight, as 32 hexadecimal digits.

    Args:
        model: The model.
        weights: In place of its own.
    """
    settings = model.memory_config.to_dict()
    if not settings["cover"]:
        del settings["cover"]  # states are older than the setting
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    digest.update(f"{model.config.family} {model.config.backbone_class}".encode())
    for name, tensor in sorted((model.state_dict(keep_vars=True) if weights is None else weights).items()):
        whole: Tensor = tensor
        if hasattr(tensor, "full_tensor"):  # split over processes (FSDP): all of them ask
            whole = cast(Any, tensor).full_tensor()
        digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}".encode())
        digest.update(cast(Any, whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:LENGTH]


class Moment:
    """The weights of a model as they were when a state was made. Called, it gives their fingerprint.

    States are made far more often than saved: the fingerprint is computed when it is first asked for.
    """

    def __init__(self, model: RecurrentMemoryModel, known: str | None = None) -> None:
        self.model, self.value = model, known
        self.mark: int | None = _mark(model)

    def __call__(self) -> str:
        """The fingerprint of that moment, if the weights are still the same."""
        if self.value is None:
            if not self.is_now():
                raise StateError(
                    "the model's weights have changed since it wrote this state (was it trained meanwhile?); read the text again"
                )
            self.value = hash_weights(self.model)
        return self.value

    def is_now(self) -> bool:
        """Whether the weights are still those of this moment."""
        return self.mark == _mark(self.model)


def _mark(model: RecurrentMemoryModel) -> int:
    """Changes when a parameter is replaced or written in place."""
    return hash(tuple((id(p), p._version, _FUSED_STEPS.get(id(p))) for p in model.parameters()))


class Fingerprint:
    """Keeps a model's fingerprint for as long as its weights stay as they are.

    Args:
        model: The model.
        known: The fingerprint, where a model folder records it.
    """

    def __init__(self, model: RecurrentMemoryModel, known: str | None = None) -> None:
        self._moment = Moment(model, known)

    def now(self) -> Moment:
        """The weights as they are now."""
        if not self._moment.is_now():
            self._moment = Moment(self._moment.model)
        return self._moment

    def going_on(self, source: Source) -> Source:
        """What names the state that goes on from one that `source` names: nothing, if the weights have changed since."""
        if not isinstance(source, Moment) or source.model is not self._moment.model or source.is_now():
            return source
        mixed = Moment(source.model)
        mixed.mark = None
        return mixed

    @contextmanager
    def kept(self) -> Generator[None]:
        """The fingerprint stays while the weights are written anew, to compute the same in another form."""
        moment = self.now()
        moment()
        yield
        moment.mark = _mark(moment.model)


Source = str | Callable[[], str]


def is_same_model(left: Source, right: Source) -> bool:
    """Whether two sources of fingerprints name one model. A model that is trained on is still the same while it lives."""
    if left is right:
        return True
    if isinstance(left, Moment) and isinstance(right, Moment) and left.model is right.model:
        return True
    return text_of(left) == text_of(right)


def text_of(source: Source) -> str:
    """The fingerprint that a source names."""
    return source if isinstance(source, str) else source()
