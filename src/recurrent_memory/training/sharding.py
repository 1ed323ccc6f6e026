"""Weights, gradients and optimizer states of the layers split over processes (FSDP), for models too large for one device.

Each layer is gathered when it runs and let go after it (`torch.distributed.fsdp.fully_shard`); the embeddings, the head and
the memory, which are used outside layers, stay whole in every process.

Gathering is something that all processes do together, but their texts differ: one may have a segment more, or nothing to
predict in this one. `Lockstep` is what they agree on for a batch, and has a process that has nothing to do in a segment
run its layers idly.

Zhao et al.: PyTorch FSDP, VLDB 2023 (arXiv:2304.11277).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from ..errors import ConfigError
from ..model import RecurrentMemoryModel
from ..segments import Segment


def shard_layers(model: RecurrentMemoryModel) -> None:
    """Split the layers of a model over all processes, in place. Every process gives the same model, on its device.

    What is not split is made the first process's in all. `model.fast` becomes `off`.

    Args:
        model: The model, with `requires_grad` set (`choose_trained`).

    Raises:
        ConfigError: if there are no processes to split it over, or weights are quantized.
        BackboneError: if the model has no list of layers.
    """
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise ConfigError("fsdp splits layers over processes; start several: torchrun --nproc-per-node 2 …")
    if not model.memory_config.num_memory_tokens:
        raise ConfigError("fsdp needs a memory to keep processes in step; take num_memory_tokens of at least 1")
    layers = model.view.layers()
    if any(not weight.is_floating_point() for layer in layers for weight in layer.parameters()):
        raise ConfigError("fsdp cannot split quantized weights; leave out fsdp, or the adapter's bits")
    device = next(model.parameters()).device
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.data, src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)  # a layer with none around it would stay gathered
    model.fast = "off"  # a layer that is stopped midway would not be let go


def is_sharded(model: RecurrentMemoryModel) -> bool:
    """Whether `shard_layers` has split it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole(value: Any) -> Any:
    """A nested value of dictionaries and lists, its split tensors gathered; every process has to ask."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in cast(dict[Any, Any], value).items()}
    return [whole(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def whole_weights(model: RecurrentMemoryModel) -> dict[str, Tensor] | None:
    """The weights of a split model, to be saved; every process has to ask. None: it is not split, and has them itself."""
    return whole(dict(model.state_dict())) if is_sharded(model) else None


def load_whole(model: RecurrentMemoryModel, weights: dict[str, Tensor]) -> None:
    """Give a split model whole weights, which every process has.

    Raises:
        RuntimeError: if names or shapes differ.
    """
    held = model.state_dict()
    model.load_state_dict({name: _split_as(weight, held.get(name)) for name, weight in weights.items()})


def load_whole_optimizer(optimizer: Optimizer, values: dict[str, Any]) -> None:
    """Give the optimizer of a split model the whole states that `whole(optimizer.state_dict())` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {name: _split_as(value, parameters[number]) for name, value in entries.items()}
        for number, entries in values["state"].items()
    }
    optimizer.load_state_dict({**values, "state": state})


def _split_as(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def split_groups(optimizer: Optimizer) -> None:
    """Put split parameters into groups of their own: one kernel does not take both kinds."""
    for group in list(optimizer.param_groups):
        split = [parameter for parameter in group["params"] if isinstance(parameter, DTensor)]
        rest = [parameter for parameter in group["params"] if not isinstance(parameter, DTensor)]
        if split and rest:
            group["params"] = rest
            optimizer.add_param_group({**group, "params": split})


def clip(model: RecurrentMemoryModel, max_norm: float) -> Tensor:
    """`clip_grad_norm_` over split and whole gradients together; the norm before."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    kinds = [[p for p in trained if isinstance(p, DTensor) == split] for split in (True, False)]
    norms = [get_total_norm([cast(Tensor, p.grad) for p in kind]) for kind in kinds if kind]
    total = torch.stack([whole(norm) for norm in norms]).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, max_norm, total)
    return total


class Lockstep:
    """What the processes of a split model do in each segment of a batch, each with texts of its own.

    Args:
        passes: `[N, K]`, whether this process runs its layers in segment n for reason k. N may differ between processes.

    Attributes:
        passes: `[N, K]`, whether any process does, N the largest of them.
    """

    def __init__(self, passes: Tensor) -> None:
        count = torch.tensor(len(passes), device=passes.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        missing = int(count) - len(passes)
        self.own: list[list[bool]] = torch.nn.functional.pad(passes.int(), (0, 0, 0, missing)).bool().tolist()
        agreed = torch.tensor(self.own, dtype=torch.int32, device=passes.device).reshape(int(count), passes.shape[1])
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        self.passes: list[list[bool]] = agreed.bool().tolist()

    def is_idle(self, segment: int, reason: int) -> bool:
        """Whether others run their layers in a segment, and this process does not."""
        return self.passes[segment][reason] and not self.own[segment][reason]


def run_idly(model: RecurrentMemoryModel, tensors: dict[str, Tensor], *, fold: bool) -> Tensor:
    """Run the layers over one token; zero, connected to all that was run and to the memory."""
    device = next(iter(tensors.values())).device
    segment = Segment(
        torch.zeros(1, 1, dtype=torch.long, device=device), torch.ones(1, dtype=torch.long, device=device)
    )
    first = {name: tensor[:1] for name, tensor in tensors.items()}
    if fold:
        hidden, after = model.memory.fold(model.view, segment, first)
        return sum((tensor.sum() for tensor in after.values()), hidden.sum()) * 0.0
    hidden, _ = model.memory.look(model.view, segment, first)
    return hidden.sum() * 0.0
