"""A study described by YAML: rows that are trained by one recipe and evaluated in one way, but for what they differ in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from ..errors import ConfigError, RecipeError
from ..training.settings import Strict, load_settings

_NAME = re.compile(r"[\w][\w .,+=()-]*")
_PLACE = re.compile(r"\{(\w+)\}")


class RowRecipe(Strict):
    """A row of the table.

    Args:
        name: What it is called; letters, digits, blanks and `.,+-=()_`.
        set: What it changes of the recipe, such as `memory.num_memory_tokens: 0`.
        recipe: Its own recipe; None: the study's.
        model: A model or backbone that is evaluated as it is, once, and not trained.
        like: Another row, whose models are evaluated in another way, such as with their memory reset.
        eval: What it changes of the study's evaluation; null takes a setting away.
    """

    name: str
    set: dict[str, Any] = Field(default_factory=dict[str, Any])
    recipe: str | None = None
    model: str | None = None
    like: str | None = None
    eval: dict[str, Any] = Field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if _NAME.fullmatch(self.name) is None:
            raise ConfigError(f"{self.name!r} is no name for a row; take letters, digits, blanks and .,+-=()_")
        if self.model is not None and self.like is not None:
            raise ConfigError(f"{self.name!r} has a model and is like another row; leave one of them out")
        if (self.model is not None or self.like is not None) and (self.set or self.recipe is not None):
            raise ConfigError(f"{self.name!r} is not trained; leave set and recipe out")
        return self

    @property
    def slug(self) -> str:
        """The name, as folders are called by it."""
        return re.sub(r"\W+", "-", self.name).strip("-").lower()


class Study(Strict):
    """A table of experiments.

    Args:
        name: What it is about.
        expected: The result to expect, in words.
        time: How long it takes, on what.
        cost: What that costs, in words.
        needs: What whoever runs it has to give as NAME=VALUE, each with a description; `{NAME}` stands for it.
        recipe: What rows are trained by; a path, from the study's folder.
        set: What all of them change of it.
        eval: The options of `rmt eval`, by name: `max_tokens: 60000`, `reset: true`.
        by: What accuracy is a curve over: the length of the text, or the number of facts in it.
        held: An accuracy, 0…1: how long it is held, and how many times the trained length that is, is said of every row.
        seeds: Of trainings; a row is trained once with each.
        rows: The rows.
        compare: Pairs of rows: what the second gains on the first. For perplexities.
    """

    name: str
    expected: str
    time: str
    cost: str
    needs: dict[str, str] = Field(default_factory=dict[str, str])
    recipe: str | None = None
    set: dict[str, Any] = Field(default_factory=dict[str, Any])
    eval: dict[str, Any] = Field(default_factory=dict[str, Any])
    by: Literal["length", "facts"] = "length"
    held: float | None = Field(None, gt=0, le=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    rows: tuple[RowRecipe, ...] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _rows_are_known(self) -> Self:
        slugs = [row.slug for row in self.rows]
        if len(set(slugs)) < len(slugs):
            raise ConfigError(f"rows: two of them would be kept in one folder ({', '.join(sorted(slugs))}); rename one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds: one is there twice ({', '.join(map(str, self.seeds))})")
        if self.held is not None and self.by != "length":
            raise ConfigError(f"held: {self.held} is of accuracy by length, this study is by {self.by}; leave held out")
        names = {row.name: row for row in self.rows}
        for row in self.rows:
            if row.like is not None and (row.like not in names or names[row.like].like is not None):
                raise ConfigError(f"{row.name!r} is like {row.like!r}, which is no row with a model of its own")
            if row.model is None and row.like is None and row.recipe is None and self.recipe is None:
                raise ConfigError(f"{row.name!r} has no recipe, and the study has none; give one")
        for name in {name for pair in self.compare for name in pair} - names.keys():
            raise ConfigError(f"compare: there is no row {name!r}")
        return self

    def row(self, name: str) -> RowRecipe:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def seeds_of(self, row: RowRecipe) -> tuple[int, ...]:
        """The seeds that a row is there for: one, where nothing is trained."""
        source = row if row.like is None else self.row(row.like)
        return self.seeds if source.model is None else self.seeds[:1]


def load_study(path: str | Path, given: Sequence[str] = (), only: Sequence[str] = ()) -> Study:
    """Read a study, with what it needs in its places.

    Args:
        path: The file.
        given: `NAME=VALUE` for everything in `needs` that its rows make use of; a list is separated by commas.
        only: Names of rows that it is to have, `*` for anything in them; those that they are like come along. Empty: all.

    Raises:
        RecipeError: if the file is missing, is not YAML, a setting is not valid, something needed is not given, or there is
            no such row.
    """
    values = dict(_pair(item) for item in given)
    study = load_settings(path, Study, "a study")
    if only:
        study = _selected(study, path, only)
    for name in values.keys() - study.needs.keys():
        known = ", ".join(study.needs) or "nothing"
        raise RecipeError(f"{path}: needs no {name!r}; it needs {known}")
    used = set(_PLACE.findall(study.model_dump_json(include={"set", "eval", "rows"})))
    for name, what in study.needs.items():
        if name not in values and name in used:
            raise RecipeError(f"{path}: needs {what}; give {name}=…")
    filled = cast(dict[str, Any], _filled(study.model_dump(), values))
    folder = Path(path).parent
    for part in (filled, *filled["rows"]):
        if part["recipe"] is not None:
            part["recipe"] = str(folder / part["recipe"])
    return Study.model_validate(filled)


def _selected(study: Study, path: str | Path, only: Sequence[str]) -> Study:
    names = [row.name for row in study.rows]
    chosen: set[str] = set()
    for pattern in only:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise RecipeError(f"{path}: has no row {pattern!r}; it has {', '.join(map(repr, names))}")
        chosen |= found
    chosen |= {row.like for row in study.rows if row.name in chosen and row.like is not None}
    rows = tuple(row for row in study.rows if row.name in chosen)
    compare = tuple(pair for pair in study.compare if chosen.issuperset(pair))
    return study.model_copy(update={"rows": rows, "compare": compare})


def _pair(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name or not value:
        raise RecipeError(f"{item!r} is not NAME=VALUE; for example train=path/to/texts")
    return name, value


def _filled(value: Any, given: Mapping[str, str]) -> Any:
    """A nested value, `{NAME}` replaced in its strings."""
    if isinstance(value, str):
        return _PLACE.sub(lambda match: given.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: _filled(item, given) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_filled(item, given) for item in cast(Sequence[Any], value)]
    return value
