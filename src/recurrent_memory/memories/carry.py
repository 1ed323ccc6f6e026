"""What of the last hidden state is carried to the next segment."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import MemoryConfig


class Carry(nn.Module, ABC):
    """Makes the next memory, `M_{t+1}`, of the hidden state `h` at the write positions of segment t.

    Args:
        config: The memory's settings.
        embedding: `[V, D]` the backbone's embeddings: what is kept here has their width, dtype and device.
    """

    def __init__(self, config: MemoryConfig, embedding: Float[Tensor, "V D"]) -> None:
        super().__init__()
        del config, embedding

    def reset_parameters(self, backbone: Backbone) -> None:
        """Set what is kept here to its initial values."""
        del backbone

    @abstractmethod
    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """The next memory.

        Args:
            hidden: `h`, in the dtype of the memory.
            before: `M_t`.
            initial: `M_0`.
        """


class HiddenCarry(Carry):
    """The papers' form: the hidden state as it is, `M_{t+1} = h`."""

    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """See `Carry.forward`."""
        return hidden


class SignCarry(Carry):
    """`M_{t+1} = sign(h + τ M_t)`, +1 or -1: a memory that a segment says nothing about comes back exactly as it was.

    Small errors are undone at every segment instead of adding up over thousands. The gradient is that of the identity
    (straight-through estimator, Bengio et al., arXiv:1308.3432). Needs training for it, or at least a backbone whose
    hidden state is about 1 in size. τ, `MemoryConfig.hold`, is how far `h` has to be on the other side of 0 to turn a bit
    over (hysteresis, as in a Schmitt trigger); 0 by default.
    """

    def __init__(self, config: MemoryConfig, embedding: Float[Tensor, "V D"]) -> None:
        super().__init__(config, embedding)
        self.hold = config.hold

    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """See `Carry.forward`."""
        if self.hold:
            hidden = hidden + self.hold * before
        return _Sign.apply(hidden)  # pyright: ignore[reportReturnType]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, hidden: Tensor) -> Tensor:
        # What is not finite must be seen to be so.
        return torch.where(hidden < 0, -torch.ones_like(hidden), torch.ones_like(hidden)) + 0 * hidden

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


class NormCarry(Carry):
    """`M_{t+1} = σ · h / √(mean_D(h²) + ε)`: every memory token is as large as an embedding. ε = 1e-6.

    σ, the standard deviation of the embedding layer's output, is what `M_0` is drawn with; it is saved with the model and
    not trained. For backbones whose last hidden state is on another scale than their embeddings (decision 0008).
    """

    EPSILON = 1e-6
    scale: Tensor

    def __init__(self, config: MemoryConfig, embedding: Float[Tensor, "V D"]) -> None:
        super().__init__(config, embedding)
        self.register_buffer("scale", torch.ones((), dtype=embedding.dtype, device=embedding.device))

    def reset_parameters(self, backbone: Backbone) -> None:
        """Take σ from the backbone."""
        nn.init.constant_(self.scale, backbone.embedding_std())

    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """See `Carry.forward`."""
        precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # squares leave float16's range
        size = (precise.square().mean(-1, keepdim=True) + self.EPSILON).sqrt()
        return (self.scale * precise / size).to(hidden.dtype)


class GateCarry(Carry):
    """`M_{t+1} = M_0 + g ⊙ h`, g `[D]` a learned gate for each channel, zero at the start.

    A new model remembers nothing and reads every segment with `M_0`, as if its memory were reset: it is no worse than
    that from the first step, and learns what is worth carrying (decision 0008). A zero at the start of a new path is that
    of ReZero (Bachlechner et al., arXiv:2003.04887) and LoRA.
    """

    def __init__(self, config: MemoryConfig, embedding: Float[Tensor, "V D"]) -> None:
        super().__init__(config, embedding)
        self.gate = nn.Parameter(torch.zeros(embedding.shape[1], dtype=embedding.dtype, device=embedding.device))

    def reset_parameters(self, backbone: Backbone) -> None:
        """Close the gate."""
        super().reset_parameters(backbone)
        nn.init.zeros_(self.gate)

    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """See `Carry.forward`."""
        return initial + self.gate * hidden


class GatedNormCarry(GateCarry, NormCarry):
    """`M_{t+1} = M_0 + g ⊙ σ · h / √(mean_D(h²) + ε)`: what a gate lets through is as large as the embeddings that it is added to.

    As `GateCarry` it begins closed. The hidden state of a pretrained decoder is many times larger than an embedding, and so is the
    gradient of a gate on it: it takes nearly all of what a clipped gradient has room for (decision 0030).
    """

    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """See `Carry.forward`."""
        return GateCarry.forward(self, NormCarry.forward(self, hidden, before, initial), before, initial)


class FirstCarry(Carry):
    """`M_{t+1} = M_0`: nothing is carried, and nothing is learned to be written.

    What stands before every segment is a learned prefix (prompt tuning, Lester et al., arXiv:2104.08691): all of a memory but what it
    says of the text. The control of what writing is worth.
    """

    def forward(
        self, hidden: Float[Tensor, "B M D"], before: Float[Tensor, "B M D"], initial: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B M D"]:
        """See `Carry.forward`."""
        return initial + 0 * hidden  # what is not finite must be seen to be so


CARRIES: dict[str, type[Carry]] = {
    "hidden": HiddenCarry,
    "sign": SignCarry,
    "norm": NormCarry,
    "gate": GateCarry,
    "gated-norm": GatedNormCarry,
    "first": FirstCarry,
}
