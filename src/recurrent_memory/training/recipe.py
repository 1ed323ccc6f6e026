"""A training recipe: YAML, validated before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import RecipeError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerRecipe(_Strict):
    """A lossless byte-level BPE vocabulary, trained on the noise and the task's own sentences."""

    vocab_size: int = Field(4096, ge=300)
    training_chars: int = Field(20_000_000, gt=0)


class Stage(_Strict):
    """One step of the curriculum. It ends at its target accuracy, its step limit, or its time limit.

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
        final_learning_rate: At its end, linearly by steps (or by time where `max_minutes` ends it).
        max_steps: The stage's limit.
        target: Mean accuracy over the last steps that ends the stage; None: only the limits do.
        probe: Weight of the memory probe's loss.
        binding: Weight of the binding probe's loss.
        unknown: Weight of questions about people who have not been heard of; their target is every place alike.
        keep: Weight of the loss that asks for the same memory after a segment with no fact in it.
        contract: Weight of the loss that asks for nearly the same memory after a segment that is read twice, once with
            noise added to the memory before it: the mean squared difference after, divided by the one before. Below 1,
            what disturbs a memory is forgotten, so that errors do not add up.
        contract_noise: The smallest and the largest standard deviation of that noise, drawn log-uniformly.
        max_minutes: A time limit, for the last stage.
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
    keep: float = 0.0
    contract: float = 0.0
    contract_noise: tuple[float, float] = (0.05, 0.5)
    max_minutes: float | None = None


class Recipe(_Strict):
    """A recipe.

    Args:
        name: What it makes.
        expected: The result, the time and the cost to expect, in words.
        seed: Of everything that is drawn.
        backbone: The configuration of a transformers causal language model, `model_type` included.
        residual_scale: Factor on the initial weights that write into the residual stream. Below 1 the write block begins
            nearly as a copy of the read block, so that a memory is kept before anything is learned.
        memory: The settings of `MemoryConfig`.
        tokenizer: The vocabulary.
        noise: Folders, files or hub ids of texts to hide facts in.
        noise_chars: How much of it to keep in RAM.
        stages: The curriculum.
        questions: Questions asked of a lane after each segment.
        weight_decay: AdamW's.
        betas: AdamW's.
        clip_norm: Of the gradient.
        out: The folder of the model; logs and checkpoints go to `<out>.run`.
        checkpoint_every_s: Seconds between checkpoints.
    """

    name: str
    expected: str
    seed: int = 0
    backbone: dict[str, Any]
    residual_scale: float = Field(1.0, gt=0)
    memory: dict[str, Any]
    tokenizer: TokenizerRecipe = Field(default_factory=TokenizerRecipe.model_construct)
    noise: list[str] = []
    noise_chars: int = Field(80_000_000, gt=0)
    stages: list[Stage] = Field(min_length=1)
    questions: int = Field(2, ge=1)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    out: str
    checkpoint_every_s: float = 60.0

    @field_validator("noise", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, with `key=value` or `stages.0.lanes=16` in place of what it says.

    Raises:
        RecipeError: if the file is missing, is not YAML, or a setting is not valid; names the setting.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); give the path of a recipe, such as recipes/small.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of settings, this is a {type(values).__name__}")
    for override in overrides or []:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"{path}: {where}: {first['msg']} (given: {str(first.get('input'))[:60]})") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not key=value; for example noise=path/to/texts or seed=1")
    *parents, last = key.split(".")
    target: Any = values
    try:
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else target[parent]
        target[int(last) if isinstance(target, list) else last] = yaml.safe_load(text)
    except (KeyError, IndexError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RecipeError(f"{override!r}: the recipe has no such setting, or the value is not valid") from error
