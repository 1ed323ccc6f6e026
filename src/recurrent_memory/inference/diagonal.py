"""The diagonal schedule: layers of different segments at once, for memories that every layer keeps for itself.

Cell (t, l), layer l in segment t, needs the memory of (t − 1, l) and the output of (t, l − 1). So the cells with t + l = i
need only cells of diagonal i − 1, and run as one call: layers that are built alike have their weights in one stack, and
`torch.vmap` makes of a layer one that has a layer axis everywhere, of its matrix products batched ones. N segments take
N + L − 1 calls in place of N·L. What is computed is the same as segment by segment, in another order.

Sivtsov, Rodkin, Kuzmin, Kuratov, Oseledets: Diagonal Batching Unlocks Parallelism in Recurrent Memory Transformers for
Long Contexts (arXiv:2506.05229).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..backbones.around_layers import Call, enter, leave, returns_tuples
from ..backbones.base import Backbone
from ..backbones.last_layer import take
from ..backbones.stacks import Stack, stacks_of
from ..errors import ConfigError
from ..memories.base import Memory, Rows
from ..memories.layerwise import LayerwiseMemory
from ..memories.rows import positions_at_end
from ..segments import Segment
from .grouped_attention import GroupedAttention

# The largest difference between a layer alone and in its stack, relative to the largest value; rounding is far below.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1


def check_possible(backbone: Backbone, memory: Memory) -> None:
    """Refuse what has no diagonals.

    Raises:
        ConfigError: if the memory is not one of every layer, has no memory tokens, or the layers are checkpointed.
    """
    kind = memory.config.kind
    if not isinstance(memory, LayerwiseMemory):
        raise ConfigError(
            f"schedule='diagonal' wants a memory that every layer keeps for itself; with kind={kind!r} the first layer waits "
            "for the last one of the segment before: take schedule='sequential', or kind='per-layer' or 'associative'"
        )
    if not memory.config.num_memory_tokens:
        raise ConfigError("schedule='diagonal' wants num_memory_tokens of at least 1; take schedule='sequential'")
    if any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in backbone.layers()):
        raise ConfigError(
            "schedule='diagonal' does not go with gradient checkpointing of layers; take schedule='sequential', or "
            "switch that off"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Entered:
    """A segment on its way through the layers."""

    rows: Rows
    calls: list[Call]
    where: Any
    active: Bool[Tensor, " B"] | None


class Diagonals:
    """A backbone and a memory, and the weights of the layers in stacks. Make one of a model, and keep it with the model.

    Args:
        backbone: The model. Its layers' parameters become views into the stacks; their values and names stay.
        memory: A memory of every layer.

    Raises:
        ConfigError: if the layers cannot run as one (see `check_possible`, `stacks_of`).
    """

    def __init__(self, backbone: Backbone, memory: Memory) -> None:
        check_possible(backbone, memory)
        assert isinstance(memory, LayerwiseMemory)
        self._backbone, self._memory = backbone, memory
        self._layers = backbone.layers()
        self._stacks = stacks_of(self._layers)
        device = backbone.embedding.weight.device
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._as_tuple = returns_tuples(backbone)
            self._check()

    def is_current(self) -> bool:
        """Whether the stacks still are the layers' weights; a change of device or dtype asks for new ones."""
        is_same = all(new is old for new, old in zip(self._backbone.layers(), self._layers, strict=True))
        return is_same and all(stack.is_whole() for stack in self._stacks)

    def fold(
        self,
        segments: Iterable[tuple[Segment, Bool[Tensor, " B"] | None]],
        tensors: dict[str, Tensor],
        *,
        with_hidden: bool = False,
    ) -> Generator[tuple[Float[Tensor, "B T D"], Callable[[], dict[str, Tensor]]], None, dict[str, Tensor]]:
        """Fold segments one after the other.

        Args:
            segments: Each with the rows that it is folded in; None: all. The others run along, and keep their memory. All
                are equally wide.
            tensors: The memory before.
            with_hidden: Whether the hidden states are wanted.

        Yields:
            The hidden states at the text positions of each segment, in order, if they are wanted; and what gives the memory
            as it is now, in which the rows that this segment is not folded in are as far as they go.

        Returns:
            The memory after.
        """
        count = len(self._layers)
        kept = _Kept(self._stacks, tensors)
        waiting: list[tuple[Tensor, _Entered] | None] = [None] * count
        usual: dict[torch.Size, list[Call]] = {}
        for given in chain(segments, [None] * (count - 1)):
            waiting[0] = self._enter(*given, usual) if given is not None else None
            if not any(waiting):
                break
            outputs: list[tuple[Tensor, _Entered] | None] = [None] * count
            for stack in self._stacks:
                self._run(stack, waiting, outputs, kept)
            ended, waiting = outputs[-1], [None, *outputs[:-1]]
            if ended is not None and with_hidden:
                hidden, entered = ended
                whole = leave(self._backbone, entered.rows.embeddings, hidden, as_tuple=self._as_tuple)
                yield entered.rows.text_of(whole), kept.tensors
        return kept.tensors()

    def one_full(self, segment: Segment, tensors: dict[str, Tensor]) -> None:
        """Run one diagonal in which every layer has a segment: what there is to be measured."""
        cell = self._enter(segment, None, {})
        kept = _Kept(self._stacks, tensors)
        outputs: list[tuple[Tensor, _Entered] | None] = [None] * len(self._layers)
        for stack in self._stacks:
            self._run(stack, [cell] * len(self._layers), outputs, kept)

    def _enter(
        self, segment: Segment, active: Bool[Tensor, " B"] | None, usual: dict[torch.Size, list[Call]]
    ) -> tuple[Tensor, _Entered]:
        rows = self._memory.rows(self._backbone, segment, write=True)
        hidden, calls = enter(self._backbone, rows.embeddings, rows.lengths, as_tuple=self._as_tuple)
        if rows.lengths is None:  # what does not depend on the text is the same object for all, and is not stacked
            calls = usual.setdefault(rows.embeddings.shape, calls)
        where = positions_at_end(rows, self._memory.config.num_memory_tokens)
        return hidden, _Entered(rows, calls, where, active)

    def _run(
        self,
        stack: Stack,
        waiting: Sequence[tuple[Tensor, _Entered] | None],
        outputs: list[tuple[Tensor, _Entered] | None],
        kept: _Kept,
    ) -> None:
        """The cells of a diagonal whose layers are in one stack. They are neighbours in it, as segments are on their way."""
        places = [place for place, number in enumerate(stack.numbers) if waiting[number] is not None]
        for start, stop in _runs(places):
            cells = [cell for number in stack.numbers[start:stop] if (cell := waiting[number]) is not None]
            hidden = torch.stack([hidden for hidden, _ in cells])
            before = kept.of(stack, start, stop)
            calls = [
                entered.calls[number] for number, (_, entered) in zip(stack.numbers[start:stop], cells, strict=True)
            ]
            wheres = [entered.where for _, entered in cells]
            after, new = self._cells(stack, start, hidden, before, calls, wheres)
            if any(entered.active is not None for _, entered in cells):
                new = _where_active([entered.active for _, entered in cells], new, before)
            kept.put(stack, start, stop, new)
            for index, number in enumerate(stack.numbers[start:stop]):
                outputs[number] = after[index], cells[index][1]

    def _cells(
        self,
        stack: Stack,
        start: int,
        hidden: Float[Tensor, "n B R D"],
        kept: dict[str, Tensor],
        calls: Sequence[Call],
        wheres: Sequence[Any],
    ) -> tuple[Float[Tensor, "n B R D"], dict[str, Tensor]]:
        """Layers `start`, `start + 1` … of a stack, each with its own hidden states, memory and call."""
        memory, numbers = self._memory, stack.numbers[start : start + len(calls)]
        of_memory = {name: tensor[numbers[0] : numbers[-1] + 1] for name, tensor in memory.layer_weights().items()}
        if len(numbers) != numbers[-1] - numbers[0] + 1:
            chosen = torch.tensor(numbers, device=hidden.device)
            of_memory = {name: tensor[chosen] for name, tensor in memory.layer_weights().items()}
        layer = stack.layers[start]
        leaves, shape, axes = _common(
            [(call.args, call.kwargs, where) for call, where in zip(calls, wheres, strict=True)]
        )

        def cell(
            weights: dict[str, Tensor] | None,
            of_memory: dict[str, Tensor],
            hidden: Tensor,
            kept: dict[str, Tensor],
            leaves: list[Any],
        ) -> tuple[Tensor, dict[str, Tensor]]:
            args, kwargs, where = tree_unflatten(leaves, shape)

            def run(*args: Any, **kwargs: Any) -> Any:
                return layer(*args, **kwargs) if weights is None else functional_call(layer, weights, args, kwargs)

            output = Call(args, kwargs, calls[0].name).on(run, memory.recall(of_memory, hidden, kept))
            return output, memory.remember(of_memory, take(output, where), kept)

        if len(calls) == 1:
            alone = [{name: tensor[0] for name, tensor in group.items()} for group in (of_memory, kept)]
            output, new = cell(None, alone[0], hidden[0], alone[1], leaves)
            return output[None], {name: tensor[None] for name, tensor in new.items()}
        weights = stack.of(start, start + len(calls))
        # Plain values are closed over: vmap maps tensors only.
        mapped = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]

        def with_leaves(
            weights: dict[str, Tensor],
            of_memory: dict[str, Tensor],
            hidden: Tensor,
            kept: dict[str, Tensor],
            mapped: list[Tensor],
        ) -> Any:
            own = iter(mapped)
            full = [leaf if axis is None else next(own) for leaf, axis in zip(leaves, axes, strict=True)]
            return cell(weights, of_memory, hidden, kept, full)

        with GroupedAttention():
            return torch.vmap(with_leaves, randomness="different")(weights, of_memory, hidden, kept, mapped)

    def _check(self) -> None:
        """Look whether layers compute in their stack what they compute alone, on a row of three positions.

        A layer whose number plays a part in what it computes does not.
        """
        modes = [(module, module.training) for layer in self._layers for module in layer.modules()]
        try:
            for module, _ in modes:
                module.training = False
            ids = torch.arange(3, device=self._backbone.embedding.weight.device)[None] % self._backbone.vocab_size
            hidden, calls = enter(self._backbone, self._backbone.embed(ids), None, as_tuple=self._as_tuple)
            for stack in self._stacks:
                weights = stack.of(0, len(stack.layers))
                call, layer = calls[stack.numbers[0]], stack.layers[0]

                def run(weights: dict[str, Tensor], call: Call = call, layer: Any = layer) -> Tensor:
                    return call.on(lambda *args, **kwargs: functional_call(layer, weights, args, kwargs), hidden)

                with GroupedAttention():
                    together = torch.vmap(run)(weights)
                for number, layer, output in zip(stack.numbers, stack.layers, together, strict=True):
                    alone = call.on(layer, hidden)
                    scale = max(float(alone.abs().max()), 1e-6)
                    difference = float((alone - output).abs().max()) / scale
                    if not difference <= _TOLERANCE.get(alone.dtype, _HALF_TOLERANCE):
                        raise ConfigError(
                            f"schedule='diagonal': layer {number} of {type(self._backbone.model).__name__} computes something "
                            f"else together with other layers than alone (relative difference {difference:.2g}); take "
                            "schedule='sequential'"
                        )
        finally:
            for module, mode in modes:
                module.training = mode


class _Kept:
    """What the layers keep, `[n, B, …]` for each stack: no copies where the layers of a diagonal are all of its layers."""

    def __init__(self, stacks: Sequence[Stack], tensors: dict[str, Tensor]) -> None:
        self._stacks = stacks
        self._kept = [
            {name: torch.stack([tensor[:, number] for number in stack.numbers]) for name, tensor in tensors.items()}
            for stack in stacks
        ]

    def of(self, stack: Stack, start: int, stop: int) -> dict[str, Tensor]:
        return {name: tensor[start:stop] for name, tensor in self._kept[self._stacks.index(stack)].items()}

    def put(self, stack: Stack, start: int, stop: int, new: dict[str, Tensor]) -> None:
        kept = self._kept[self._stacks.index(stack)]
        for name, tensor in new.items():
            if stop - start == len(stack.layers):
                kept[name] = tensor
            else:
                kept[name] = torch.cat([kept[name][:start], tensor.to(kept[name].dtype), kept[name][stop:]])

    def tensors(self) -> dict[str, Tensor]:
        """As a state holds them, `[B, L, …]`."""
        order = torch.tensor(list(chain.from_iterable(stack.numbers for stack in self._stacks))).argsort()
        found: dict[str, Tensor] = {}
        for name in self._kept[0]:
            stacked = torch.cat([kept[name] for kept in self._kept])
            found[name] = stacked[order.to(stacked.device)].movedim(0, 1).contiguous()
        return found


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring places as ranges."""
    starts = [place for place in places if place - 1 not in places]
    stops = [place + 1 for place in places if place + 1 not in places]
    return list(zip(starts, stops, strict=True))


def _common(each: Sequence[Any]) -> tuple[list[Any], Any, list[int | None]]:
    """The leaves of several trees of one shape as one tree: tensors that differ are stacked, axis 0; the rest must agree.

    Raises:
        ConfigError: if the trees, or their plain values, differ.
    """
    flat = [tree_flatten(tree) for tree in each]
    leaves: list[Any] = []
    axes: list[int | None] = []
    for found in zip(*(leaves for leaves, _ in flat), strict=True):
        first = found[0]
        is_tensor = isinstance(first, Tensor)
        if all(leaf is first for leaf in found) or (not is_tensor and all(leaf == first for leaf in found)):
            leaves.append(first)
            axes.append(None)
        elif all(isinstance(leaf, Tensor) for leaf in found):
            leaves.append(torch.stack(found))
            axes.append(0)
        else:
            raise ConfigError(
                f"schedule='diagonal': layers that are built alike are called with different things ({found[:2]}); take "
                "schedule='sequential'"
            )
    return leaves, flat[0][1], axes


def _where_active(
    active: Sequence[Bool[Tensor, " B"] | None], new: dict[str, Tensor], old: dict[str, Tensor]
) -> dict[str, Tensor]:
    like = next(mask for mask in active if mask is not None)
    rows = torch.stack([torch.ones_like(like) if mask is None else mask for mask in active])
    return {
        name: torch.where(rows.view(*rows.shape, *[1] * (tensor.ndim - 2)), tensor, old[name])
        for name, tensor in new.items()
    }
