"""A learning rate of its own for the memory: it is new, where the backbone is pretrained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer


def split_off(optimizer: Optimizer, parameters: Iterable[Tensor], learning_rate: float) -> None:
    """Move parameters into groups of their own, after the others, that differ in the learning rate only.

    Args:
        optimizer: An optimizer that has taken no step, and whose schedule is not made yet.
        parameters: What moves; those that it does not train are passed over.
        learning_rate: Theirs.
    """
    moving = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in moving]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moving]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
