"""A line about a dtype that the CPU at hand has no instructions for: computing in it is slower there than in float32."""

from __future__ import annotations

import timeit
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HALVES = {"bfloat16": "bfloat16", "float16": "float16", "bf16": "bfloat16", "fp16": "float16"}
"""By their names on the command line, and in recipes."""
_WORTH_SAYING = 2.0


def slowness(name: str, device_type: str) -> str | None:
    """What to say before long work in a dtype; None: nothing.

    Args:
        name: "bfloat16", "bf16", … ; others are not looked at.
        device_type: Such as "cpu"; others are not looked at.
    """
    if device_type != "cpu" or name not in HALVES:
        return None
    import torch

    times = times_float32(getattr(torch, HALVES[name]))
    if times < _WORTH_SAYING:
        return None
    return f"{HALVES[name]}: a matrix product takes {times:.0f} times as long as in float32 on this CPU; float32 is faster here"


@cache
def times_float32(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a product of 128 × 512 and 512 × 512 numbers takes on the CPU, measured once."""
    import torch

    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    import torch

    rows, weight = torch.ones(128, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    with torch.no_grad():  # the first one prepares
        return min(timeit.repeat(lambda: torch.nn.functional.linear(rows, weight), number=1, repeat=4)[1:])
