"""The part of an experiment that says which task is learned, and which text its facts are hidden in."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError
from ..tasks.registry import load_task, task_names
from .settings import Strict


class TaskRecipe(Strict):
    """What is learned: questions about facts in long texts; see `TaskExamples`.

    Args:
        name: A task, or several, of which one is drawn for each example; one that is named twice, twice as often.
        options: Of the tasks, such as `source: FOLDER` for bAbI's files; under a task's own name, of that one alone.
        noise: Folders, files or hub ids of texts that the facts are hidden in; none where they are the text.
        noise_chars: How much of it is kept in RAM.
        partial: How often the last segment of a text is cut short, 0…1.
        boundary: "sentence" or "word": after which a fact may stand.
        hard_noise: How often an example's noise is made of passages around words that facts are made of, 0…1.
        unanswerable: How often the facts are left out of an example's text, 0 ≤ … < 1, so that knowing nothing is kept apart from every
            answer. The training's accuracy counts these, the held-out one has none.
        max_tokens: The most tokens of a text, facts included; None: as many as its segments hold.
        question_apart: Whether the question has a segment of its own; False: it goes on in the last one of the text.
        ends: Whether a model that writes on learns to end after its answer.
        questions: How many different questions are asked about each text, which is read once for all; of tasks that can.
    """

    name: tuple[str, ...] = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    noise: tuple[str, ...] = ()
    noise_chars: int = Field(20_000_000, gt=0)
    partial: float = Field(0.25, ge=0, le=1)
    boundary: Literal["sentence", "word"] = "sentence"
    hard_noise: float = Field(0.0, ge=0, le=1)
    unanswerable: float = Field(0.0, ge=0, lt=1)
    max_tokens: int | None = Field(None, ge=1)
    question_apart: bool = True
    ends: bool = True
    questions: int = Field(1, ge=1)

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
        for name in self.options.keys() & set(known):
            if name not in self.name or not isinstance(self.options[name], dict):
                raise ConfigError(
                    f"options: {name}: {self.options[name]!r} must be options, NAME: VALUE, of a task that is learned; "
                    f"that is {', '.join(self.name)}"
                )
        return self

    def changed(self, changes: dict[str, Any]) -> TaskRecipe:
        """The same, some settings in another way.

        Raises:
            ConfigError: if a setting is unknown, is not valid, or is of the noise, which is loaded once.
        """
        allowed = type(self).model_fields.keys() - {"noise", "noise_chars"}
        for name in sorted(changes.keys() - allowed):
            raise ConfigError(f"{name!r} of the task of a stage is not one of {', '.join(sorted(allowed))}")
        try:
            return TaskRecipe.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"the task of a stage: {where}: {first['msg']}") from error

    def settings(self) -> dict[str, Any]:
        """What `TaskExamples` is told of it, all but the noise.

        Raises:
            ConfigError: if a task does not take the options.
        """
        rest = self.model_dump(exclude={"name", "options", "noise", "noise_chars"})
        return {"tasks": tuple(load_task(name, **self._options_of(name)) for name in self.name), **rest}

    def _options_of(self, name: str) -> dict[str, Any]:
        shared = {key: value for key, value in self.options.items() if key not in self.name}
        return {**shared, **self.options.get(name, {})}
