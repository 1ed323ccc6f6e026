"""The loss that a memory stays as it is over segments in which there is nothing to remember."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ConfigError
from ..head_loss import at_least_float32
from ..memories.carry import SignCarry
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


class Keeper:
    """Sees what a model carries, so that the loss can be computed of it.

    Args:
        model: The model.

    Raises:
        ConfigError: if its memory is not one of tokens, or it writes none.
    """

    def __init__(self, model: RecurrentMemoryModel) -> None:
        carry = getattr(model.memory, "carry", None)
        self._written = model.memory_config.num_written
        if not isinstance(carry, nn.Module) or not self._written:
            raise ConfigError(
                f"keep is for memory tokens that the model writes; this is a memory of kind={model.memory_config.kind!r} with "
                f"{self._written} of them: leave it out"
            )
        self._hidden: Tensor | None = None
        if isinstance(carry, SignCarry):
            carry.register_forward_hook(self._see)

    def _see(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self._hidden = inputs[0]

    def loss(
        self, before: dict[str, Tensor], after: dict[str, Tensor], active: Bool[Tensor, " B"], rows: Bool[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """`change_of` the last segment.

        Args:
            before: The memory before it.
            after: That after it.
            active: The rows that had a segment.
            rows: Those of them in which there was nothing to remember, at least one.
        """
        # Rows without a segment are not run.
        hidden = at_least_float32(self._hidden[rows[active]]) if self._hidden is not None else None
        self._hidden = None
        old, new = (at_least_float32(tensors["memory"][rows, : self._written]) for tensors in (before, after))
        return change_of(hidden, old, new)


@dataclass(frozen=True, slots=True)
class Keep:
    """What of a batch is to be kept.

    Args:
        keeper: Sees what is carried.
        rows: `[B]` the rows of which no segment has anything to remember.
        weight: A factor on the loss, which is the mean over segments.
    """

    keeper: Keeper
    rows: Bool[Tensor, " B"]
    weight: float
