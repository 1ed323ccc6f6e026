"""The curves of the trainings of a study, from the checkpoints that these left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from recurrent_memory.studies.definition import Study
from recurrent_memory.studies.plan import Unit, plan
from recurrent_memory.studies.trainings import Measured, draw_trainings, measured


def stage(unit: Unit, number: int, steps: int, log: list[dict[str, Any]]) -> Path:
    folder = Path(f"{unit.model}.run") / f"stage-{number}-segments-2"
    for step in (2, steps):  # the last one has all of the log
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        rows = [row for row in log if row["step"] <= step]
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": rows}))
    return folder


def units(out: Path) -> list[Unit]:
    rows = [{"name": "zero-shot", "model": "m"}, {"name": "RMT"}, {"name": "RMT, reset", "like": "RMT"}]
    described = {"name": "s", "expected": "-", "time": "-", "cost": "-", "recipe": "r.yaml", "seeds": [3], "rows": rows}
    return plan(Study.model_validate(described), out)


def test_stages_follow_one_another(tmp_path: Path) -> None:
    mine = units(tmp_path)
    for number in (1, 2):
        log = [
            {"step": 5, "loss": 3.0 / number, "accuracy": 0.5},
            {"step": 10, "eval_loss": 2.0 / number, "eval_accuracy": 0.25 * number},
            {"step": 10, "train_runtime": 1.0},
        ]
        stage(mine[1], number, 10, log)
    assert measured(mine) == [
        Measured("RMT", 3, 5, 3.0, 0.5, None, None),
        Measured("RMT", 3, 10, None, None, 2.0, 0.25),
        Measured("RMT", 3, 15, 1.5, 0.5, None, None),
        Measured("RMT", 3, 20, None, None, 1.0, 0.5),
    ]


def test_ten_stages_are_in_their_order(tmp_path: Path) -> None:
    mine = units(tmp_path)
    for number in range(1, 11):
        stage(mine[1], number, 4, [{"step": 4, "loss": float(number)}])
    assert [(point.step, point.loss) for point in measured(mine)] == [(4 * n, float(n)) for n in range(1, 11)]


def test_a_picture_is_drawn_of_what_is_there(tmp_path: Path) -> None:
    mine, path = units(tmp_path), tmp_path / "trainings.png"
    assert not draw_trainings(measured(mine), path, title="s", held="held_out_loss")
    assert not path.exists()
    folder = stage(mine[1], 1, 4, [{"step": 2, "loss": float("nan")}, {"step": 4, "loss": 1.0}])
    assert draw_trainings(measured(mine), path, title="s", held="held_out_accuracy")
    assert path.read_bytes().startswith(b"\x89PNG")
    stage(mine[1], 2, 4, [])
    (folder.parent / "stage-2-segments-2" / "checkpoint-4" / "trainer_state.json").write_text("{")
    assert measured(mine) == [], "not a part of a training"
    shutil.rmtree(folder.parent)
    assert measured(mine) == []
