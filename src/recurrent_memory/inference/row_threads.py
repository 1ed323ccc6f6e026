"""The rows of a batch shared out over CPU threads, a few rows at a time.

Rows have nothing to do with each other. Threads that share every matrix product wait for each other after each of them; threads
that have rows of their own do not wait at all. And few rows at a time stay in the caches of a core (decision 0016).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CPU_POSITIONS = 1024
"""Positions that are computed at a time where there are many rows, and that a thread must have to be worth it."""

Tensors = dict[str, Tensor]
Fold = Callable[[slice], Tensors]


def fold_in_pieces(fold: Fold, batch: int, positions: int, threads: int | None = None) -> Tensors:
    """What `fold` makes of all rows, as it makes it of some rows at a time.

    Args:
        fold: Computes the rows of a slice; called from several threads at once, if there are several.
        batch: B, the number of rows.
        positions: Of a row, computed at a time.
        threads: How many to use; None: as many as torch does.

    Returns:
        Tensors whose first axis is B.
    """
    threads = threads or torch.get_num_threads()
    if batch == 1 or batch * positions < threads * CPU_POSITIONS or batch < threads or not _is_plain_context():
        return fold(slice(0, batch))
    size = min(-(-batch // threads), max(1, CPU_POSITIONS // positions))
    pieces = [slice(first, min(batch, first + size)) for first in range(0, batch, size)]
    if threads == 1:
        folded = [fold(piece) for piece in pieces]
    else:
        is_inference = torch.is_inference_mode_enabled()

        def alone(piece: slice) -> Tensors:
            with torch.inference_mode(is_inference), torch.no_grad():
                return fold(piece)

        folded = list(_pool(threads).map(alone, pieces))
    return {name: torch.cat([part[name] for part in folded]) for name in folded[0]}


def _is_plain_context() -> bool:
    """Whether nothing holds for this thread that would not hold for others: gradients, autocast, modes such as FLOP counters."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportPrivateUsage]
        or torch._C._len_torch_function_stack()  # pyright: ignore[reportPrivateUsage]
    )


def _compute_alone() -> None:
    torch.get_num_threads()  # the first question in a thread sets its number to that of all; so it is asked here
    torch.set_num_threads(1)


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_making = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone; made once, and again in a process that was forked."""
    key = (os.getpid(), threads)
    with _making:
        if key not in _pools:
            pool = ThreadPoolExecutor(threads, "rows", initializer=_compute_alone)
            started = threading.Barrier(threads + 1)
            for _ in range(threads):
                pool.submit(started.wait)
            started.wait()
            torch.set_num_threads(threads)  # what the new threads set holds for later threads too
            _pools[key] = pool
        return _pools[key]
