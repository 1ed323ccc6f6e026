"""Settings from a YAML file and from `key=value`, validated before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import RecipeError


class Strict(BaseModel):
    """Settings that cannot be changed, and of which none is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SettingsT = TypeVar("SettingsT", bound=Strict)


def load_settings(path: str | Path, kind: type[SettingsT], what: str, overrides: Sequence[str] = ()) -> SettingsT:
    """Read settings. Nothing is loaded but the file.

    Args:
        path: The file.
        kind: What to read.
        what: Its name with an article, for errors.
        overrides: `key=value` in place of what the file says; a key may go into a mapping or a list: `stages.0.lanes=16`.

    Raises:
        RecipeError: if the file is missing, is not YAML, or a setting is not valid; names the setting.
    """
    values = read_values(path, what)
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or what.split()[-1]
        said = first["msg"].removeprefix("Value error, ")  # pydantic's, before what is said here
        raise RecipeError(f"{path}: {where}: {said} (given: {str(first.get('input'))[:60]})") from error


def read_values(path: str | Path, what: str) -> dict[str, Any]:
    """The values of a YAML file, not validated.

    Raises:
        RecipeError: if the file is missing, is not YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file, such as recipes/small.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: {what} is a mapping of settings, this is a {type(values).__name__}")
    return cast(dict[str, Any], values)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not key=value; for example noise=path/to/texts or seed=1")
    *parents, last = key.split(".")
    target: Any = values
    try:
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else _part(target, parent)
        target[int(last) if isinstance(target, list) else last] = yaml.safe_load(text)
    except (KeyError, IndexError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RecipeError(f"{override!r}: the recipe has no such setting, or the value is not valid") from error


def _part(values: dict[str, Any], name: str) -> Any:
    """A part of the settings; one that is left out is begun. That there is such a one is looked at when all is valid."""
    if values.get(name) is None:
        values[name] = {}
    return values[name]


def is_experiment(values: Mapping[str, Any]) -> bool:
    """Whether a file describes an `Experiment` rather than a `Recipe`.

    A backbone that is described is made, and learns who is where; one that is named is given a memory, and learns a task or a
    text. A model may be trained further in both ways.
    """
    return isinstance(values.get("backbone"), str) or "task" in values or "text" in values
