"""Products of int8 matrices, exact, by whichever way is faster on the CPU at hand.

PyTorch's own is fast where the CPU has instructions for it (AVX-512 VNNI), and elsewhere one number after the other: on an AMD EPYC
without them (Zen 3) it takes 20 to 30 times as long as a product in float32. That is exact as well, as long as no sum exceeds 2^24.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Int8, Num
from torch import Tensor

_COLUMNS = 2**24 // 128**2
"""The most columns whose products sum up to 2^24 at most."""


def multiply(rows: Int8[Tensor, "R I"], weight: Int8[Tensor, "O I"]) -> Num[Tensor, "R O"]:
    """`rows weightᵀ`, the same whole numbers on every CPU, as int32 or as float32 where all of them are exact in it."""
    return (by_integers if _integers_are_faster() else by_floats)(rows, weight)


def by_integers(rows: Int8[Tensor, "R I"], weight: Int8[Tensor, "O I"]) -> Num[Tensor, "R O"]:
    """By PyTorch's product of int8 matrices."""
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
def _integers_are_faster() -> bool:
    """Measured once, in a few milliseconds."""
    rows, weight = torch.ones(64, 256, dtype=torch.int8), torch.ones(256, 256, dtype=torch.int8)
    return _seconds(by_integers, rows, weight) <= _seconds(by_floats, rows, weight)


def _seconds(way: Callable[[Tensor, Tensor], Tensor], rows: Tensor, weight: Tensor) -> float:
    way(rows, weight)
    taken: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        way(rows, weight)
        taken.append(time.perf_counter() - began)
    return min(taken)
