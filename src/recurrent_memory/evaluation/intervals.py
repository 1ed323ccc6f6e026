"""Confidence intervals of proportions and of means."""

from __future__ import annotations

from math import sqrt

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927), by default at 95 %.

    Example:
        >>> low, high = wilson(95, 100)
        >>> round(low, 3), round(high, 3)
        (0.888, 0.978)
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap(
    sums: Float64[ndarray, "N K"], counts: Int64[ndarray, " N"], *, seed: int = 0, resamples: int = 10_000
) -> tuple[Float64[ndarray, " K"], Float64[ndarray, " K"]]:
    """95 % intervals of K means by bootstrap over N blocks (Efron & Tibshirani 1993, section 8.6).

    Give differences of two columns, and the interval is that of a paired comparison.

    Args:
        sums: Of each block.
        counts: What each block is a sum of so many.
        seed: Of the blocks that are drawn.
        resamples: How often N of them are drawn.

    Returns:
        The lower ends, and the upper.
    """
    rng, num_blocks = np.random.default_rng(seed), len(counts)
    at_a_time = max(1, 2**20 // num_blocks)
    means: list[ndarray] = []
    for first in range(0, resamples, at_a_time):
        drawn = rng.integers(num_blocks, size=(min(at_a_time, resamples - first), num_blocks))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1)[:, None])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975], axis=0)
    return low, high
