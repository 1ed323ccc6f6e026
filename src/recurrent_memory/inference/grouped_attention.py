"""Attention of several layers at once, as one attention of a larger batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class GroupedAttention(TorchFunctionMode):
    """While this lasts, `torch.vmap` puts its axis into the batch of `scaled_dot_product_attention`.

    Its fast kernels take four axes; without this, `vmap` calls some of them (on a CPU) once for each layer.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, *rest = args
        mask = rest.pop(0) if rest else kwargs.pop("attn_mask", None)
        return _Grouped.apply(query, key, value, mask, tuple(rest), kwargs)


class _Grouped(torch.autograd.Function):
    """`scaled_dot_product_attention`, with a rule for `vmap`. It never runs outside of one."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rest: tuple[Any, ...], settings: dict[str, Any]
    ) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask, *rest, **settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch passes what `forward` takes
        info: Any,
        in_dims: tuple[int | None, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        rest: tuple[Any, ...],
        settings: dict[str, Any],
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        query, key, value = (
            _into_batch(tensor, dim, size) for tensor, dim in zip((query, key, value), in_dims, strict=False)
        )
        if mask is not None and (in_dims[3] is not None or (mask.ndim == 4 and mask.shape[0] > 1)):
            mask = mask.expand(size, *mask.shape) if in_dims[3] is None else mask.movedim(in_dims[3], 0)
            mask = mask.view(size, *[1] * (5 - mask.ndim), *mask.shape[1:])
            mask = mask.expand(-1, query.shape[0] // size, *mask.shape[2:]).flatten(0, 1)
        output = scaled_dot_product_attention(query, key, value, mask, *rest, **settings)
        return output.unflatten(0, (size, -1)), 0


def _into_batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    grouped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return grouped.flatten(0, 1)
