"""The parts of an experiment's description: adapter, stages, backpropagation, optimizer, batch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from .bptt import Backpropagation, Kind
from .settings import Strict
from .task_lanes import Carried
from .trained import LoraSettings


class LoraRecipe(Strict):
    """See `LoraSettings`.

    Args:
        r: The adapter's rank.
        alpha: Its scale is alpha / r.
        target_modules: Names of the layers that it goes into, by their ends; None: peft's choice.
        bits: 4: the backbone is packed into 4 bits (QLoRA, arXiv:2305.14314; needs bitsandbytes: pip install
            'recurrent-memory[four-bit]'), and the model is saved so; None: in its own dtype.
    """

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    target_modules: tuple[str, ...] | None = None
    bits: Literal[4] | None = None

    def build(self) -> LoraSettings:
        """The adapter's settings."""
        return LoraSettings(self.r, self.alpha, self.target_modules)


class CarriedRecipe(Strict):
    """See `Carried`."""

    lifetime: float = Field(1000.0, ge=1)
    drop_lost: bool = True
    first_segments: int = Field(4, ge=1)
    spread: bool = True
    keep: float = Field(0.0, ge=0)
    wait: bool = False
    ordinary: float = Field(0.0, ge=0, lt=1)
    apart: bool = False
    asked_early: float | None = Field(None, ge=0, le=1)

    def build(self) -> Carried:
        """How lanes are carried."""
        return Carried(**self.model_dump())


class StageRecipe(Strict):
    """See `Stage`; the limit, the target, the learning rate, `batch.size` and how it is measured are the experiment's where left out.

    `target_accuracy: null` is a stage that takes all its steps. `task` is what of the experiment's task it has in another way:
    easier questions, shorter texts.
    """

    num_segments: int = Field(ge=1)
    max_steps: int | None = Field(None, ge=1)
    target_accuracy: float | None = Field(None, gt=0, le=1)
    learning_rate: float | None = Field(None, gt=0)
    eval_segments: int | None = Field(None, ge=1)
    eval_every: int | None = Field(None, ge=1)
    num_eval_examples: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    carried: CarriedRecipe | None = None
    candidates: int = Field(1, ge=1)
    task: dict[str, Any] = Field(default_factory=dict[str, Any])


class BackpropagationRecipe(Strict):
    """See `Backpropagation`."""

    kind: Kind = "full"
    window: int | None = None

    @model_validator(mode="after")
    def _is_valid(self) -> Self:
        self.build()
        return self

    def build(self) -> Backpropagation:
        """Which gradient is taken, and how."""
        return Backpropagation(self.kind, self.window)


class OptimizerRecipe(Strict):
    """AdamW under a learning rate that rises, then falls to 0, linearly, anew in each stage.

    Args:
        learning_rate: At its highest.
        memory_learning_rate: Of the memory's parameters, at its highest, in every stage; None: that of the others.
        warmup: The share of a stage's steps in which it rises.
        weight_decay: AdamW's.
        betas: AdamW's.
        clip: The largest norm of the gradient; 0: not clipped.
    """

    learning_rate: float = Field(1e-4, gt=0)
    memory_learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, ge=0)


class BatchRecipe(Strict):
    """Examples a step.

    Args:
        size: Of one process at once.
        parts: Of that size, one after the other, before a step (gradient accumulation).
    """

    size: int = Field(8, ge=1)
    parts: int = Field(1, ge=1)
