"""Backpropagation through time over segments: through all of them, through a true window, or with recomputation.

All three read the same cells (`unroll.py`) in the same order and drawing the same random numbers. They differ in which
cells stay in memory:

=============  =====================================  ============================================
kind           gradients                              cells in memory at once
=============  =====================================  ============================================
`full`         exact                                  all N
`recompute`    exact                                  1, and N boundary states `[B, M, D]`
`truncated`    of a window of k segments              k
=============  =====================================  ============================================

**The window.** The gradient that `truncated` computes is Σ_t ∂L_t/∂θ, where L_t, the loss of segment t, is computed with
the memory that segment t − k + 1 reads taken as a constant: L_t sends gradients into the segments t − k + 1 … t, for
*every* t. These are not blocks of k segments, in which the first segment of a block would send gradients into itself
alone. With t − k + 1 ≤ 0 the window reaches the first memory, `M_0`, which is then learned from L_t too; with k = 1 no
gradient passes from a segment to another.

The gradient of the memory of segment s is asked for by the losses of s … s + k − 1, each of which must stop at another
segment, so they are sent back one by one: through the memory alone, and by the sum of them, once, into the weights.
A segment costs one backward pass, and one through the memory alone for each later loss in its window. Where only the
last segment has a loss, all but the last k segments are read without a graph.

Williams, Peng: An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories, 1990 (the
window, there BPTT(h)); Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174
(recomputation).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConfigError
from ..model import RecurrentMemoryModel
from ..state import MemoryState
from .keeping import Keep
from .random_state import RandomState
from .unroll import Cell, Unrolling

Kind = Literal["full", "truncated", "recompute"]
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Backpropagation:
    """Which gradient is taken, and how.

    Args:
        kind: "full", "truncated" or "recompute".
        window: k, segments that a loss sends gradients into; of "truncated" only.

    Raises:
        ConfigError: if the kind is not known, or the window is missing or out of range.

    Example:
        >>> Backpropagation("truncated", window=2)
        Backpropagation(kind='truncated', window=2)
    """

    kind: Kind = "full"
    window: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"kind={self.kind!r} is not a kind of backpropagation; choose one of {', '.join(get_args(Kind))}"
            )
        if self.kind != "truncated" and self.window is not None:
            raise ConfigError(f"window={self.window!r} is of kind='truncated' only; leave it out of {self.kind!r}")
        window = self.window
        if self.kind == "truncated" and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise ConfigError(f"window={window!r} must be an int of at least 1: the segments that a loss reaches")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a batch.

    Args:
        loss: `[]`, cut from the graph, not scaled.
        num_right: `[]` predictions whose most likely class is the label.
        num_wrong: `[B]` predictions of each row whose most likely class is not the label.
        row_losses: `[B]` the sum of the cross-entropies of each row; 0 where labels are not classes.
        num_labels: Labels in the batch.
        memory_state: The state after the texts, cut from the graph.
        kept: `[]` the loss that the memory stays as it is (`Keep`), which is not part of `loss`; 0 where it is not wanted.
    """

    loss: Float[Tensor, ""]
    num_right: Int[Tensor, ""]
    num_wrong: Int[Tensor, " B"]
    row_losses: Float[Tensor, " B"]
    num_labels: int
    memory_state: MemoryState
    kept: Float[Tensor, ""]


def backpropagate(
    model: RecurrentMemoryModel,
    input_ids: Int[Tensor, "B T"],
    labels: Tensor,
    attention_mask: Tensor | None = None,
    memory_state: MemoryState | None = None,
    text_lengths: Int[Tensor, " B"] | None = None,
    texts: Int[Tensor, " B"] | None = None,
    *,
    method: Backpropagation,
    num_items_in_batch: Tensor | int | None = None,
    loss_scale: Tensor | float = 1.0,
    keep: Keep | None = None,
    autocast: Autocast = nullcontext,
) -> Outcome:
    """Read a batch of texts and add the gradients of its loss to `.grad` of the parameters.

    Args:
        model: The model.
        input_ids: `[B, T]`, texts of any length.
        labels: As for `RecurrentMemoryModel.forward`. Decoders and masked LM: `[B, T]`, -100 where there is no loss, so
            that language modelling labels every token and a question its answer only. Classification: `[B]`.
            Encoder–decoders: `[B, T_out]`.
        attention_mask: `[B, T]`, 0 at padding, on either side.
        memory_state: The state to go on from. Gradients end at it.
        text_lengths: `[B]` tokens of each row before its question, which begins a segment of its own; None: no row has one.
        texts: `[B]` which text a row has before its question: those of rows with the same number are read once; None: each
            row's own.
        method: Which gradient, and how.
        num_items_in_batch: What the sum over the labels is divided by; None: by their number.
        loss_scale: A factor on the gradients, not on the loss that is returned (of a `GradScaler`, or of gradient
            accumulation).
        keep: In which rows the memory is to stay as it is, a loss of its own; None: in none.
        autocast: Makes the context in which the forward passes run.

    Raises:
        ConfigError: if the memory is not one that can be kept.
        InputError: if the ids are out of the vocabulary, or shapes do not agree.
        StateModelMismatchError: if another model wrote the state.

    Example:
        >>> outcome = backpropagate(model, ids, labels, method=Backpropagation("recompute"))
        >>> optimizer.step()
    """
    text = Unrolling(
        model, input_ids, labels, attention_mask, memory_state, num_items_in_batch, text_lengths, keep, texts
    )
    run = _Run(text, loss_scale, autocast)
    if method.kind == "recompute":
        tensors = _recompute(run)
    elif method.kind == "truncated" and method.window is not None and method.window < text.num_segments:
        tensors = _truncated(run, method.window)
    else:
        tensors = _full(run)
    return run.outcome(tensors)


@torch.no_grad()
def measure(
    model: RecurrentMemoryModel,
    input_ids: Int[Tensor, "B T"],
    labels: Tensor,
    attention_mask: Tensor | None = None,
    memory_state: MemoryState | None = None,
    text_lengths: Int[Tensor, " B"] | None = None,
    texts: Int[Tensor, " B"] | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    autocast: Autocast = nullcontext,
) -> Outcome:
    """The outcome of a batch without gradients; arguments as of `backpropagate`."""
    text = Unrolling(
        model, input_ids, labels, attention_mask, memory_state, num_items_in_batch, text_lengths, texts=texts
    )
    run = _Run(text, 1.0, autocast)
    tensors = run.text.start.tensors
    for index in range(run.text.num_segments):
        cell = run.read(index, tensors)
        run.count(cell)
        tensors = cell.tensors
    return run.outcome(tensors)


class _Run:
    """A batch on its way: reads its cells, sums up what they gave."""

    def __init__(self, text: Unrolling, loss_scale: Tensor | float, autocast: Autocast) -> None:
        self.text, self.loss_scale, self.autocast = text, loss_scale, autocast
        device = text.text.input_ids.device
        self.losses: list[Tensor] = []
        self.kept = torch.zeros((), device=device)
        self.num_right = torch.zeros((), dtype=torch.long, device=device)
        self.num_wrong = torch.zeros_like(text.folds)
        self.row_losses = torch.zeros(len(text.folds), dtype=torch.float32, device=device)
        self.device = device

    def read(self, index: int, tensors: dict[str, Tensor], *, with_head: bool = True) -> Cell:
        with self.autocast():
            return self.text.cell(index, tensors, with_head=with_head)

    def count(self, cell: Cell) -> None:
        if cell.kept is not None:
            self.kept = self.kept + cell.kept.detach()
        if (
            cell.loss is not None
            and cell.num_right is not None
            and cell.num_wrong is not None
            and cell.row_losses is not None
        ):
            self.losses.append(cell.loss.detach())
            self.row_losses = self.row_losses + cell.row_losses
            self.num_right = self.num_right + cell.num_right
            self.num_wrong = self.num_wrong + cell.num_wrong

    def outcome(self, tensors: dict[str, Tensor]) -> Outcome:
        loss = torch.stack(self.losses).sum() if self.losses else torch.zeros((), device=self.device)
        state = self.text.final_state(tensors)
        return Outcome(loss, self.num_right, self.num_wrong, self.row_losses, self.text.num_labels, state, self.kept)


def _full(run: _Run) -> dict[str, Tensor]:
    tensors, losses = run.text.start.tensors, list[Tensor]()
    for index in range(run.text.num_segments):
        with torch.set_grad_enabled(index <= run.text.last_loss):
            cell = run.read(index, tensors)
        run.count(cell)
        losses += [cell.objective] if cell.objective is not None else []
        tensors = cell.tensors
    if losses:
        (torch.stack(losses).sum() * run.loss_scale).backward()
    return tensors


def _recompute(run: _Run) -> dict[str, Tensor]:
    """Forward without a graph, keeping what each segment starts from; then each again, from the last to the first."""
    num_segments, last = run.text.num_segments, run.text.last_loss
    boundaries = [run.text.start.tensors]
    drawn: list[RandomState] = []
    for index in range(num_segments):
        drawn.append(RandomState.now(run.device))
        if index == last == num_segments - 1:
            break  # nothing follows it, and the backward pass begins with it
        with torch.no_grad():
            boundaries.append(run.read(index, boundaries[-1], with_head=False).tensors)
    after = RandomState.now(run.device)
    adjoints: dict[str, Tensor] = {}
    for index in range(last, -1, -1):
        drawn[index].restore()
        inputs = _leaves(boundaries[index]) if index else boundaries[0]
        cell = run.read(index, inputs)
        if index == num_segments - 1:
            after = RandomState.now(run.device)
            boundaries.append(_detached(cell.tensors))
        run.count(cell)
        _Held(inputs, cell.tensors, _scaled(cell.objective, run.loss_scale), adjoints).settle()
        adjoints = {name: tensor.grad for name, tensor in inputs.items() if index and tensor.grad is not None}
    after.restore()
    run.losses.reverse()  # summed in the order of the text, as the other kinds do
    return boundaries[-1]


def _truncated(run: _Run, window: int) -> dict[str, Tensor]:
    has_loss = run.text.has_loss
    tensors = run.text.start.tensors
    held: deque[_Held] = deque()
    for index in range(run.text.num_segments):
        inputs = _leaves(tensors) if index else tensors
        with torch.set_grad_enabled(any(has_loss[index : index + window])):
            cell = run.read(index, inputs)
        run.count(cell)
        held.append(_Held(inputs, cell.tensors, _scaled(cell.objective, run.loss_scale), {}))
        if cell.objective is not None:
            _send_back(held)
        if len(held) == window:
            held.popleft().settle()
        tensors = _detached(cell.tensors)
        del inputs, cell  # the window alone keeps graphs
    while held:
        held.popleft().settle()
    return tensors


def _send_back(held: deque[_Held]) -> None:
    """The last cell's loss, through the memories to the first cell of the window; into no weights yet."""
    last = held[-1]
    assert last.loss is not None
    adjoints = _gradients([last.loss], [None], last.inputs) if len(held) > 1 else {}
    for cell in list(held)[-2::-1]:
        for name, adjoint in adjoints.items():
            cell.owed[name] = cell.owed[name] + adjoint if name in cell.owed else adjoint
        if cell is not held[0]:
            reached = [name for name in adjoints if cell.outputs[name].requires_grad]
            adjoints = _gradients([cell.outputs[name] for name in reached], [adjoints[n] for n in reached], cell.inputs)


@dataclass(slots=True)
class _Held:
    """A cell in memory, and what later losses ask of it.

    Args:
        inputs: The memory before it, leaves of its graph.
        outputs: The memory after it.
        loss: Its own loss, scaled.
        owed: The gradients of later losses with respect to `outputs`, summed.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    loss: Tensor | None
    owed: dict[str, Tensor]

    def settle(self) -> None:
        """Add the gradients of all losses to the weights, and free the graph."""
        owed = {name: adjoint for name, adjoint in self.owed.items() if self.outputs[name].requires_grad}
        tensors = [self.outputs[name] for name in owed]
        adjoints: list[Tensor | None] = list(owed.values())
        if self.loss is not None and self.loss.requires_grad:
            tensors.append(self.loss)
            adjoints.append(None)
        if tensors:
            torch.autograd.backward(tensors, adjoints)


def _gradients(outputs: list[Tensor], adjoints: list[Tensor | None], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name, tensor in inputs.items() if tensor.requires_grad]
    if not names or not outputs:
        return {}
    found = torch.autograd.grad(
        outputs, [inputs[name] for name in names], adjoints, retain_graph=True, allow_unused=True
    )
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def _scaled(loss: Tensor | None, scale: Tensor | float) -> Tensor | None:
    return None if loss is None else loss * scale


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values as leaves of a graph of their own."""
    return {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in tensors.items()}
