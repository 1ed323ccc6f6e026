"""How far a memory goes, beside what it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recurrent_memory.studies.definition import Study
from recurrent_memory.studies.held import Held, held
from recurrent_memory.studies.plan import plan
from recurrent_memory.studies.table import Cell

DESCRIBED = {"name": "s", "expected": "-", "time": "-", "cost": "-"}


def cells(row: str, values: dict[int, float]) -> list[Cell]:
    return [Cell(row, "0", "accuracy", str(at), 50, value, None, None) for at, value in values.items()]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    recipe = {**DESCRIBED, "backbone": "b", "memory": {"segment_length": 32}, "stages": [1, 2], "out": "unused"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = [
        {"name": "two"},
        {"name": "four", "set": {"stages": [1, 4]}},
        {"name": "never"},
        {"name": "given", "model": "m"},
    ]
    rows.append({"name": "reset", "like": "two", "eval": {"reset": True}})
    return Study.model_validate({**DESCRIBED, "recipe": str(tmp_path / "recipe.yaml"), "held": 0.9, "rows": rows})


def test_the_longest_length_before_the_first_that_is_lost(study: Study, tmp_path: Path) -> None:
    measured = cells("two", {128: 0.8, 32: 1.0, 64: 0.9, 256: 0.95})  # held again later does not count
    measured += cells("four", {32: 1.0, 64: 1.0, 128: 0.96, 256: 0.92})
    measured += (
        cells("never", {32: 0.2, 64: 1.0}) + cells("given", {32: 1.0, 64: 0.0}) + cells("reset", {32: 1.0, 64: 0})
    )
    measured.append(Cell("two", "0", "accuracy, memory reset", "32", 50, 0.1, None, None))
    found = held(study, measured, plan(study, tmp_path))
    assert found == [
        Held("two", 0.9, 64, False, 64),
        Held("four", 0.9, 256, True, 128),
        Held("never", 0.9, None, False, 64),
        Held("given", 0.9, 32, False, None),
        Held("reset", 0.9, 32, False, 64),
    ]
    assert [row.ratio for row in found] == [1, 2, None, None, 0.5]
    assert str(found[1]) == (
        "four: accuracy 90% is held for 256 tokens (the longest that was read), 2 times the 128 that it was trained on."
    )
    assert str(found[2]) == "never: accuracy 90% is not held at the shortest length."
    assert held(study.model_copy(update={"held": None}), measured, []) == []


def test_it_is_of_lengths() -> None:
    with pytest.raises(ValueError, match="held: 0.9 is of accuracy by length, this study is by facts"):
        Study.model_validate({**DESCRIBED, "held": 0.9, "by": "facts", "recipe": "r", "rows": [{"name": "a"}]})
