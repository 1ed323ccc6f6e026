"""Tasks are found by name, those of other packages too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.tasks import registry
from recurrent_memory.tasks.base import Sample, Task
from recurrent_memory.tasks.recall import Detect
from recurrent_memory.tasks.registry import load_task, register_task, task_names, unregister_task


@pytest.fixture
def temporary_name() -> Iterator[str]:
    yield "find"
    if "find" in task_names():
        unregister_task("find")


def test_all_tasks_of_this_package_follow_the_protocol() -> None:
    for name in ("memorize", "detect", "reason", "pairs", "qa1", "qa2", "qa3", "qa4", "qa5"):
        task = load_task(name)
        assert isinstance(task, Task)
        assert task.name == name
        sample = task.draw(random.Random(0))
        assert sample.answers == task.answers
        assert sample.answer in (task.answers or ())


def test_names_are_listed() -> None:
    assert task_names() == sorted(["memorize", "detect", "reason", "pairs", *(f"qa{i}" for i in range(1, 21))])


def test_a_task_can_be_registered_by_factory_and_by_location(temporary_name: str) -> None:
    register_task(temporary_name, Detect)
    register_task(temporary_name, Detect)
    assert load_task(temporary_name) == Detect()
    with pytest.raises(ConfigError, match="'find' is already registered as .*Detect.*; choose another name"):
        register_task(temporary_name, "recurrent_memory.tasks.recall:Reason")
    unregister_task(temporary_name)
    register_task(temporary_name, "recurrent_memory.tasks.recall:Reason")
    assert load_task(temporary_name).name == "reason"


def test_a_location_has_a_form() -> None:
    with pytest.raises(ConfigError, match="'nonsense' is not of the form 'package.module:factory'"):
        register_task("find", "nonsense")


def test_an_unknown_task_is_named_with_those_that_there_are() -> None:
    with pytest.raises(
        ConfigError, match="'qa21' is unknown; there are detect, memorize, .*register_task.*entry-point"
    ):
        load_task("qa21")
    with pytest.raises(ConfigError, match="'find' is not registered; registered are detect"):
        unregister_task("find")


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'detect' does not take the options \['colour'\]"):
        load_task("detect", colour="red")


def test_tasks_of_other_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    good = EntryPoint("theirs", "recurrent_memory.tasks.recall:Detect", registry.ENTRY_POINT_GROUP)
    bad = EntryPoint("broken", "no_such_package:Task", registry.ENTRY_POINT_GROUP)

    def entry_points(**wanted: Any) -> EntryPoints:
        return EntryPoints([good, bad]).select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "theirs" in task_names()
    assert load_task("theirs") == Detect()
    with pytest.raises(ConfigError, match=r"'broken' of another package \(no_such_package:Task\) cannot be imported"):
        load_task("broken")


def test_a_sample_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"supporting=\(1,\) points outside the 1 facts"):
        Sample(("A.",), "?", "b", (1,))
    with pytest.raises(ConfigError, match=r"answer='b' is not one of answers=\('c',\)"):
        Sample(("A.",), "?", "b", (0,), ("c",))
