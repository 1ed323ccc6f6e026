"""The loss that a memory stays as it is over segments in which there is nothing to remember."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ConfigError
from ..head_loss import at_least_float32
from ..memories.base import Memory
from ..memories.carry import SignCarry
from ..memories.layerwise import LayerwiseMemory
from ..memories.tokens import TokenMemory
from ..model import RecurrentMemoryModel

MARGIN = 0.5


def change_of(
    hidden: Float[Tensor, "B M D"] | None, before: Float[Tensor, "B M D"], after: Float[Tensor, "B M D"]
) -> Float[Tensor, ""]:
    """How much of a memory has changed, or is near to it.

    Of a memory of signs: how far the hidden state that a sign is taken of is from being on the side of the sign before by
    0.5, a hinge loss, its mean over all numbers. Of others: the mean square of the difference.

    Args:
        hidden: What the signs were taken of, before `hold`; None: a memory of other numbers.
        before: The memory before the segment; no gradients go back to it.
        after: That after it.

    Example:
        >>> before = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]])
        >>> float(change_of(torch.tensor([[[2.0, 0.5, 0.5, -0.1]]]), before, before))  # of 0, 0, 1 and 0.4
        0.3499999940395355
    """
    before = before.detach()
    if hidden is None:
        return (after - before).square().mean()
    return (MARGIN - hidden * before.sign()).relu().mean()


@dataclass(frozen=True, slots=True)
class Keep:
    """What of a batch is to be kept.

    Args:
        rows: `[B]` the rows of which no segment has anything to remember.
        weight: A factor on the loss, which is the mean over segments.
    """

    rows: Bool[Tensor, " B"]
    weight: float


def check_keeps(model: RecurrentMemoryModel) -> None:
    """Refuse a model whose memory cannot be asked to stay as it is.

    Raises:
        ConfigError: if the model writes none, or it is of a kind for which nobody has said what a change is.
    """
    config = model.memory_config
    if not isinstance(model.memory, TokenMemory | LayerwiseMemory) or not config.num_written:
        raise ConfigError(
            f"keep is for memory tokens that the model writes, and for memories of the layers; this is a memory of "
            f"kind={config.kind!r} with {config.num_written} of them: leave it out"
        )


@contextmanager
def watched(model: RecurrentMemoryModel) -> Generator[list[Tensor]]:
    """The hidden states that signs are taken of within it, one `[B, M, D]` for each segment; none of memories of other numbers."""
    seen: list[Tensor] = []
    carry = model.memory.carry if isinstance(model.memory, TokenMemory) else None
    if not isinstance(carry, SignCarry):
        yield seen
        return
    handle = carry.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def kept_loss(
    memory: Memory,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    seen: Sequence[Tensor],
    active: Bool[Tensor, " B"],
    rows: Bool[Tensor, " B"],
) -> Float[Tensor, ""]:
    """How much a memory has changed over a segment, in some of its rows: `LayerwiseMemory.change`, or `change_of`.

    Args:
        memory: What made it.
        before: The memory before it; no gradients go back to it.
        after: That after it.
        seen: What `watched` saw while it was read.
        active: The rows that had a segment; others were not run.
        rows: Those of them in which there was nothing to remember, at least one.
    """
    old, new = ({name: at_least_float32(tensor[rows]) for name, tensor in kept.items()} for kept in (before, after))
    if isinstance(memory, LayerwiseMemory):
        return memory.change({name: tensor.detach() for name, tensor in old.items()}, new)
    hidden = at_least_float32(seen[0][rows[active]]) if seen else None
    written = memory.config.num_written
    return change_of(hidden, old["memory"][:, :written], new["memory"][:, :written])
