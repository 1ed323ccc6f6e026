"""The last hidden states at a few positions of a row, without the rest of the last layer.

A memory is written at M positions of a row of S + 2M. Of the others the last layer gives keys and values to attend to,
and nothing else that is wanted: its queries, its projection, its feed-forward network need run at M positions only. A
model of L layers so computes about 1/L less.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

WORTH = 1e8
"""From so many floating-point operations on it is worth leaving them out on a CPU (decision 0010)."""

Positions = Int[Tensor, "B M"] | slice


def take(hidden: Shaped[Tensor, "B ... R D"], positions: Positions) -> Shaped[Tensor, "B ... M D"]:
    """What stands at some positions of each row, the same ones in all rows (a slice) or not."""
    if isinstance(positions, slice):
        return hidden[..., positions, :]
    index = positions.view(len(positions), *[1] * (hidden.ndim - 3), -1, 1)
    return hidden.gather(-2, index.expand(*hidden.shape[:-2], -1, hidden.shape[-1]))


def trimmed(body: PreTrainedModel, last: nn.Module, positions: Positions) -> PreTrainedModel:
    """A model's body whose last layer computes only some positions; at the others its output means nothing.

    The body and its layers are the ones given, under shells: no weight is copied, and nothing in them is changed.

    Args:
        body: The model without its head.
        last: Its last layer.
        positions: Which ones.
    """
    shell = _replaced(body, last, _Trimmed(last, positions))
    assert shell is not None, "the layer is one of the body's"
    return shell  # pyright: ignore[reportReturnType]


def is_possible(last: nn.Module) -> bool:
    """Whether a position takes from others only what attention gives it: there is no convolution over positions."""
    return not any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.RNNBase) for module in last.modules())


def is_worth(last: nn.Module, rows: Float[Tensor, "B R D"], positions: Positions) -> bool:
    """Whether leaving out the other positions saves more time than running up to the attention twice takes.

    On a CPU a small layer does not. Elsewhere this is not measured, and everything is worth it.
    """
    if rows.device.type != "cpu":
        return True
    batch, length = rows.shape[:2]
    kept = len(range(*positions.indices(length))) if isinstance(positions, slice) else positions.shape[1]
    weights = sum(tensor.numel() for tensor in (*last.parameters(), *last.buffers()))
    return 2 * weights * batch * (length - kept) >= WORTH


def _replaced(module: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module | None:
    """A shallow copy of a module in which one of those inside it is another; None: it is not inside."""
    if module is old:
        return new
    for name, child in vars(module)["_modules"].items():
        inner = _replaced(child, old, new) if child is not None else None
        if inner is not None:
            shell = copy.copy(module)
            shell.__dict__ = {**module.__dict__, "_modules": {**vars(module)["_modules"], name: inner}}
            return shell
    return None


class _Trimmed(nn.Module):
    """A layer that runs up to its attention at all positions, and from there on at some.

    Where it asks for no `scaled_dot_product_attention` of a row with itself, it runs as it is.
    """

    def __init__(self, layer: nn.Module, positions: Positions) -> None:
        super().__init__()
        self.__dict__["layer"], self.__dict__["positions"] = layer, positions  # not among its modules: it owns nothing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: Float[Tensor, "B R D"], *args: Any, **kwargs: Any) -> Any:
        layer, positions = self.__dict__["layer"], self.__dict__["positions"]
        length = hidden.shape[1]
        try:
            with _Finding(length):
                return layer(hidden, *args, **kwargs)
        except _Found as found:
            attend = found.attend
        # A view with gaps would have every linear layer copy its weight for each row of the batch.
        some = take(hidden, positions).contiguous()
        kwargs = {name: _shortened(value, name, length, some.shape[1]) for name, value in kwargs.items()}
        with _Given(attend(positions)):
            output = layer(some, *args, **kwargs)
        some = output if isinstance(output, Tensor) else output[0]
        whole = torch.zeros_like(hidden, dtype=some.dtype)
        if isinstance(positions, slice):
            whole[:, positions] = some
        else:
            whole = whole.scatter(1, positions[..., None].expand_as(some), some)
        return whole if isinstance(output, Tensor) else (whole, *output[1:])


def _shortened(value: Any, name: str, length: int, count: int) -> Any:
    """An argument of a layer that is given fewer positions.

    Which ones does not matter: these are what queries and keys are turned by, and the attention that was found has its
    own, masks included.
    """
    if isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value):  # cosines and sines, `[…, R, d]`
        return tuple(part[..., :count, :] if part.shape[-2] == length else part for part in value)
    if isinstance(value, Tensor) and "mask" not in name and value.shape[-1] == length:  # positions, `[…, R]`
        return value[..., :count]
    return value


class _Found(Exception):  # noqa: N818  # no error: what was looked for
    """The attention of a row with itself, ready to be done at any of its positions."""

    def __init__(self, attend: Callable[[Positions], Tensor]) -> None:
        super().__init__()
        self.attend = attend


class _Finding(TorchFunctionMode):
    """Stops at the first attention of a whole row with itself."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        kwargs = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, *rest = args
        if query.shape[-2] != self.length or key.shape[-2] != self.length:
            return func(*args, **kwargs)
        mask = rest[0] if rest else kwargs.pop("attn_mask", None)
        dropout = rest[1] if len(rest) > 1 else kwargs.pop("dropout_p", 0.0)
        is_causal = rest[2] if len(rest) > 2 else kwargs.pop("is_causal", False)

        def attend(positions: Positions) -> Tensor:
            seen = mask
            if is_causal:
                places = torch.arange(self.length, device=query.device)
                seen = places <= (places[positions] if isinstance(positions, slice) else positions[:, None])[..., None]
            elif mask is not None and mask.shape[-2] == self.length:
                whole = isinstance(positions, slice) or mask.shape[0] == query.shape[0]
                seen = take(mask if whole else mask.expand(query.shape[0], *mask.shape[1:]), positions)
            return func(take(query, positions), key, value, seen, dropout, False, **kwargs)

        raise _Found(attend)


class _Given(TorchFunctionMode):
    """Gives what was found in place of the first attention that is asked for."""

    def __init__(self, attended: Tensor) -> None:
        super().__init__()
        self.attended: Tensor | None = attended

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        if func is scaled_dot_product_attention and self.attended is not None:
            attended, self.attended = self.attended, None
            return attended
        return func(*args, **(kwargs or {}))
