"""Products of int8 matrices, exact, by whichever way is faster on the CPU at hand.

PyTorch's own is fast where the CPU has instructions for it (AVX-512 VNNI), and elsewhere one number after the other: on an AMD EPYC
without them (Zen 3) it takes 13 to 28 times as long as a product in float32. That is exact as well, as long as no sum exceeds 2^24.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Int8, Num
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
"""Of `[R, I]` and `[O, I]` in int8 `[R, O]`, the first times the second's transpose: whole numbers, in int32 or exact in float32."""

_COLUMNS = 2**24 // 128**2
"""The most columns whose products sum up to 2^24 at most."""


def by_integers(rows: Int8[Tensor, "R I"], weight: Int8[Tensor, "O I"]) -> Num[Tensor, "R O"]:
    """By PyTorch's product of int8 matrices."""
    if rows.shape[1] == 1:  # on a CPU with AMX PyTorch 2.13 leaves the result unwritten
        return rows.int() * weight.t().int()
    # PyTorch has no other; torchao calls it as well.
    return torch._int_mm(rows, weight.t())  # pyright: ignore[reportPrivateUsage]


def by_floats(rows: Int8[Tensor, "R I"], weight: Int8[Tensor, "O I"]) -> Num[Tensor, "R O"]:
    """By products in float32 of so many columns at a time that all of their sums are whole numbers in it."""
    if rows.shape[1] <= _COLUMNS:
        return rows.float() @ weight.float().t()
    product = torch.zeros(len(rows), len(weight), dtype=torch.int32)
    for some, theirs in zip(rows.split(_COLUMNS, 1), weight.split(_COLUMNS, 1), strict=True):
        product += (some.float() @ theirs.float().t()).int()
    return product


@cache
def faster_way() -> Product:
    """Measured once in a process, in a few milliseconds."""
    rows, weight = torch.ones(64, 256, dtype=torch.int8), torch.ones(256, 256, dtype=torch.int8)

    def seconds(way: Product) -> float:
        return min(timeit.repeat(lambda: way(rows, weight), number=1, repeat=4)[1:])  # the first one prepares

    return min((by_integers, by_floats), key=seconds)
