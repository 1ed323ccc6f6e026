"""The tasks by name. A task is one file, here or in another package; adding one changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

from ..errors import ConfigError
from .base import Task

ENTRY_POINT_GROUP = "recurrent_memory.tasks"
"""Packages declare their tasks here: `[project.entry-points."recurrent_memory.tasks"]`, `name = "package.module:Class"`."""

TaskFactory = Callable[..., Task]
_BABI_TASKS = 20

_FACTORIES: dict[str, TaskFactory | str] = {
    "memorize": "recurrent_memory.tasks.recall:Memorize",
    "detect": "recurrent_memory.tasks.recall:Detect",
    "reason": "recurrent_memory.tasks.recall:Reason",
    "pairs": "recurrent_memory.tasks.pairs:Pairs",
    **{f"qa{number}": "recurrent_memory.tasks.babi:load_babi" for number in range(1, _BABI_TASKS + 1)},
}


def register_task(name: str, factory: TaskFactory | str) -> None:
    """Add a task.

    Args:
        name: What `load_task` is called with.
        factory: Makes the task from the options of `load_task`; or where it is, as "package.module:factory", which is
            imported when the task is first loaded.

    Raises:
        ConfigError: if the name is taken by another factory, or a location is not of that form.

    Example:
        >>> from recurrent_memory.tasks.recall import Detect
        >>> register_task("find", Detect)
        >>> load_task("find").placement
        'anywhere'
        >>> unregister_task("find")
    """
    taken = _FACTORIES.get(name, factory)
    if taken != factory:
        raise ConfigError(f"name={name!r} is already registered as {taken}; choose another name")
    if isinstance(factory, str) and not all(factory.partition(":")):
        raise ConfigError(f"factory={factory!r} is not of the form 'package.module:factory'; give that or a callable")
    _FACTORIES[name] = factory


def unregister_task(name: str) -> None:
    """Take a task out again.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in _FACTORIES:
        raise ConfigError(f"name={name!r} is not registered; registered are {', '.join(sorted(_FACTORIES))}")
    del _FACTORIES[name]


def task_names() -> list[str]:
    """The names that `load_task` accepts, those of other installed packages included."""
    return sorted({*_FACTORIES, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def load_task(name: str, **options: Any) -> Task:
    """Make a task.

    Args:
        name: One of `task_names()`.
        options: What the task's factory takes, such as `source=` and `split=` for `qa1` … `qa20`.

    Raises:
        ConfigError: if the name is unknown, another package's task cannot be imported, or the options do not fit.

    Example:
        >>> import random
        >>> sample = load_task("memorize").draw(random.Random(0))
        >>> sample.answer in sample.facts[0]
        True
    """
    factory = _find(name)
    try:
        signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"task {name!r} does not take the options {sorted(options)} ({error}); see the docstring of its factory"
        ) from error
    return factory(**options)


def _find(name: str) -> TaskFactory:
    if name in _FACTORIES:
        factory = _FACTORIES[name]
        if isinstance(factory, str):
            factory = _import(factory)
            # One factory makes all twenty: it has to know which.
            return partial(factory, name) if name.startswith("qa") and name[2:].isdecimal() else factory
        return factory
    points = entry_points(group=ENTRY_POINT_GROUP, name=name)
    for point in points:
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"task {name!r} of another package ({point.value}) cannot be imported: {error}; "
                "repair or uninstall that package"
            ) from error
    raise ConfigError(
        f"task {name!r} is unknown; there are {', '.join(task_names())}. To add one, call "
        f"register_task({name!r}, factory), or declare it in a package under the entry-point group "
        f"{ENTRY_POINT_GROUP!r}"
    )


def _import(location: str) -> TaskFactory:
    module, _, name = location.partition(":")
    return getattr(import_module(module), name)
