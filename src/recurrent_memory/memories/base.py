"""The protocol of a kind of memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import MemoryConfig
from ..segments import Segment

Run = Callable[[Tensor, Tensor | None], Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the backbone saw of a segment, and where the text was in it.

    Args:
        embeddings: `[B, R, D]` the input embeddings of the rows.
        lengths: `[B]` real positions of each row; None where all are.
        text_start: The position of the first text token, the same in every row.
        text_width: Text positions, padded ones included.
    """

    embeddings: Float[Tensor, "B R D"]
    lengths: Int[Tensor, " B"] | None
    text_start: int
    text_width: int

    def text_of(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B T D"]:
        """The hidden states at the text positions."""
        return hidden[:, self.text_start : self.text_start + self.text_width]


class Memory(nn.Module, ABC):
    """A way of remembering. Owns its parameters; what it remembers is passed in and out, never kept.

    Args:
        config: The settings.
        backbone: The model that it is for; widths are taken from it. Not kept.

    `is_positionwise`: whether all that it does at a position of a row, besides what the model does, can be done without the
    positions before. Then a row that grows need not be run anew (`Backbone.continued`). Where it is not said, it is not.
    """

    is_positionwise: ClassVar[bool] = False

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def reset_parameters(self, backbone: Backbone) -> None:
        """Draw the initial values of the parameters."""

    @abstractmethod
    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """What is remembered before any text, batch axis first."""

    @abstractmethod
    def row_length(self, backbone: Backbone) -> int:
        """R, positions of a row that holds a full segment."""

    @abstractmethod
    def fold(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read a segment and remember it.

        Returns:
            The hidden states at the text positions, `[B, T, D]`, and the new memory.
        """

    def write(self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new memory alone, where nothing else of a segment is wanted: a kind that can computes less for it."""
        return self.fold(backbone, segment, tensors)[1]

    @abstractmethod
    def look(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor], run: Run | None = None
    ) -> tuple[Any, Rows]:
        """Read a segment without remembering it.

        Args:
            backbone: The model.
            segment: The text.
            tensors: The memory.
            run: What to run on the rows' embeddings and lengths; by default `backbone.encode`.

        Returns:
            What `run` returned (by default the hidden states of the whole rows, `[B, R, D]`), and the rows.
        """
