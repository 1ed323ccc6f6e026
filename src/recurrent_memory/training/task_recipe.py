"""The part of an experiment that says which task is learned, and which text its facts are hidden in."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..errors import ConfigError
from ..tasks.registry import task_names
from .settings import Strict


class TaskRecipe(Strict):
    """What is learned: questions about facts in long texts; see `TaskExamples`.

    Args:
        name: A task, or several, of which one is drawn for each example.
        options: Of the tasks, such as `source: FOLDER` for bAbI's files.
        noise: Folders, files or hub ids of texts that the facts are hidden in.
        noise_chars: How much of it is kept in RAM.
        partial: How often the last segment of a text is cut short, 0…1.
        boundary: "sentence" or "word": after which a fact may stand.
        hard_noise: How often an example's noise is made of passages around words that facts are made of, 0…1.
    """

    name: tuple[str, ...] = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    noise: tuple[str, ...] = ()
    noise_chars: int = Field(20_000_000, gt=0)
    partial: float = Field(0.25, ge=0, le=1)
    boundary: Literal["sentence", "word"] = "sentence"
    hard_noise: float = Field(0.0, ge=0, le=1)

    @field_validator("name", "noise", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        known = task_names()
        for name in self.name:
            if name not in known:
                raise ConfigError(f"{name!r} is not a task; there are {', '.join(known)}")
        return self
