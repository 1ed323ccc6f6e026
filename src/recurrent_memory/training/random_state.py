"""The random numbers of PyTorch as a value: dropout that is computed again is the same dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """Where the generators of the CPU and of one device stand.

    Args:
        cpu: The CPU's state.
        device: The device that the model computes on.
        on_device: That device's state; None for the CPU.
    """

    cpu: Tensor
    device: torch.device
    on_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """The generators as they stand."""
        there = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), device, there)

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self.cpu)
        if self.on_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.on_device, self.device)
