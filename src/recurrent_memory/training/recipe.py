"""A training recipe: YAML, validated before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from .settings import Strict, load_settings

WARMUP_STEPS = 30


class TokenizerRecipe(Strict):
    """A lossless byte-level BPE vocabulary, trained on the noise and the task's own sentences."""

    vocab_size: int = Field(4096, ge=300)
    training_chars: int = Field(20_000_000, gt=0)


class Stage(Strict):
    """One step of the curriculum. It ends at its target accuracy or at its limit.

    Args:
        num_segments: Segments that gradients go back through, k.
        segment_length: The longest segment of the stage; at most the model's.
        lifetime: The mean number of segments after which a lane begins a new text; up to `num_segments`: every step.
        drop_lost: Whether facts that are answered wrongly after a step are dropped until the text speaks of the person
            again; a lane without any left begins anew. Then what is learned from is how a fact is lost, never what to
            say when it is lost already, and lanes live as long as the model can keep their facts.
        facts: The mean number of facts a segment, drawn for every lane between these two, log-uniformly.
        first_facts: The mean number of facts that are put into the first segments of a lane besides; one lane in five
            goes without.
        distractors: The mean number of look-alike sentences a segment; one of these for every lane.
        lanes: Texts read side by side.
        learning_rate: At the start of the stage, after 30 steps of warm-up.
        final_learning_rate: At its end, linearly by steps; None: the same.
        max_steps: The stage's limit.
        target: Mean accuracy over the last steps that ends the stage, after 100 of them; None: only the limit does.
        probe: Weight of the memory probe's loss.
        binding: Weight of the binding probe's loss.
        unknown: Weight of questions about people who have not been heard of; their target is every place alike.
        questions: Questions asked of a lane after each segment, about different people.
        seed: Where the generator of torch begins in this stage; None: it goes on from the stage before.
        lanes_seed: Draws the texts of the lanes; None: the number of the stage, from 0.
        anew: Whether the optimizer and the probes begin anew too. With both seeds, what the stage makes then depends on
            the weights before it, and on nothing else of the stages that made them.
        hold: The memory's `hold` from this stage on; None: as it was.
        keep: Weight of the loss that asks for the same memory after a segment with no fact in it.
        sparse: Weight of the loss that asks a segment with a fact in it to change few memory tokens; for memories of signs.
    """

    num_segments: int = Field(ge=1)
    segment_length: int = Field(ge=1)
    lifetime: float = Field(ge=1)
    drop_lost: bool = False
    facts: tuple[float, float]
    first_facts: float = 0.0
    distractors: tuple[float, ...] = (0.0,)
    lanes: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    final_learning_rate: float | None = None
    max_steps: int = Field(gt=0)
    target: float | None = None
    probe: float = 0.0
    binding: float = 0.0
    unknown: float = 0.3
    questions: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    lanes_seed: int | None = Field(None, ge=0)
    anew: bool = False
    hold: float | None = Field(None, ge=0)
    keep: float = 0.0
    sparse: float = Field(0.0, ge=0)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, the first of which is 0."""
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        if self.final_learning_rate is None:
            return self.learning_rate * warm
        done = min(1.0, step / self.max_steps)
        return (self.learning_rate + (self.final_learning_rate - self.learning_rate) * done) * warm


class Recipe(Strict):
    """A recipe.

    Args:
        name: What it makes.
        expected: The result to expect, in words.
        time: How long it takes, on what.
        cost: What that costs, in words.
        seed: Of everything that is drawn.
        model: A recurrent-memory model to train further, a folder or a hub id ("shipped": the one in the package), in
            place of the next three.
        backbone: The configuration of a transformers causal language model, `model_type` included.
        memory: The settings of `MemoryConfig`.
        tokenizer: The vocabulary.
        noise: Folders, files or hub ids of texts to hide facts in.
        noise_chars: How much of it to keep in RAM.
        stages: The curriculum.
        final_hold: The memory's `hold` in the model that is saved; None: as in the last stage.
        weight_decay: AdamW's.
        betas: AdamW's.
        clip_norm: Of the gradient.
        out: The folder of the model; logs and checkpoints go to `<out>.run`.
        checkpoint_every_s: Seconds between checkpoints.
    """

    name: str
    expected: str
    time: str
    cost: str
    seed: int = 0
    model: str | None = None
    backbone: dict[str, Any] = Field(default_factory=dict[str, Any])
    memory: dict[str, Any] = Field(default_factory=dict[str, Any])
    tokenizer: TokenizerRecipe = Field(default_factory=TokenizerRecipe.model_construct)
    noise: list[str] = Field(default_factory=list[str])
    noise_chars: int = Field(80_000_000, gt=0)
    stages: list[Stage] = Field(min_length=1)
    final_hold: float | None = Field(None, ge=0)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    out: str
    checkpoint_every_s: float = 60.0

    @field_validator("noise", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one_beginning(self) -> Recipe:
        if (self.model is None) == (not self.backbone):
            raise ValueError("a recipe has either a model, to train further, or a backbone, to begin from")
        if self.model is not None and self.memory:
            raise ValueError("a model has a memory already; leave memory out, or begin from a backbone")
        holds = [self.final_hold, *(stage.hold for stage in self.stages)]
        if any(hold is not None for hold in holds) and self.model is None and self.memory.get("carry") != "sign":
            raise ValueError("hold is for memories of signs; give memory.carry=sign")
        return self

    def hold_at(self, index: int) -> float | None:
        """The memory's `hold` in a stage; None: the model's own."""
        return next((stage.hold for stage in reversed(self.stages[: index + 1]) if stage.hold is not None), None)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with `key=value` or `stages.0.lanes=16` in place of what it says.

    Raises:
        RecipeError: if the file is missing, is not YAML, or a setting is not valid; names the setting.
    """
    return load_settings(path, Recipe, "a recipe", overrides)
