"""A study is checked before anything runs, and says what it will run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from recurrent_memory.errors import RecipeError
from recurrent_memory.studies.definition import load_study
from recurrent_memory.studies.plan import options_of, plan

VALUES: dict[str, Any] = {
    "name": "memory",
    "expected": "-",
    "time": "-",
    "cost": "-",
    "needs": {"books": "a folder of texts"},
    "recipe": "../recipes/lm.yaml",
    "set": {"text.train": "{books}/train", "max_steps": 9},
    "eval": {"task": "lm", "text": "{books}/test", "max_tokens": 60, "bos": True},
    "seeds": [3, 5],
    "rows": [
        {"name": "zero-shot", "model": "gpt2", "eval": {"window": 64, "bos": None}},
        {"name": "RMT, 2 tokens", "set": {"memory": {"num_memory_tokens": 2}}},
        {"name": "memory reset", "like": "RMT, 2 tokens", "eval": {"reset": True}},
    ],
    "compare": [["memory reset", "RMT, 2 tokens"]],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **changes}, sort_keys=False))
    return path


def test_what_is_run(tmp_path: Path) -> None:
    study = load_study(written(tmp_path), ["books=my books"])
    units = plan(study, tmp_path / "out", ["--threads", "1"])
    assert [unit.name for unit in units] == [
        "zero-shot-seed-3", "rmt-2-tokens-seed-3", "memory-reset-seed-3", "rmt-2-tokens-seed-5", "memory-reset-seed-5"
    ]  # fmt: skip
    zero_shot, first, reset, _, _ = units
    assert zero_shot.training is None
    assert zero_shot.evaluation == (
        "eval", "gpt2", "--task", "lm", "--text", "my books/test", "--max-tokens", "60", "--window", "64",
        "--out", str(tmp_path / "out/evaluations/zero-shot-seed-3"), "--resume", "--threads", "1",
    )  # fmt: skip
    model = str(tmp_path / "out/models/rmt-2-tokens-seed-3")
    assert first.training == (
        "train", str(tmp_path / "../recipes/lm.yaml"), 'text.train="my books/train"', "max_steps=9",
        'memory={"num_memory_tokens": 2}', f"out={model}", "seed=3", "--resume", "--threads", "1",
    )  # fmt: skip
    assert first.model == reset.model == reset.evaluation[1] == model
    assert reset.training is None
    assert "--reset" in reset.evaluation
    assert "--bos" in reset.evaluation


def test_some_rows_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path, rows=[*VALUES["rows"], {"name": "films", "model": "{movies}"}], needs={"books": "b", "movies": "m"}
    )
    some = load_study(path, ["books=x"], ["memory*"])
    assert [row.name for row in some.rows] == ["RMT, 2 tokens", "memory reset"], "what it is like comes along"
    assert some.compare == (("memory reset", "RMT, 2 tokens"),)
    alone = load_study(path, ["books=x"], ["RMT, 2 tokens", "zero-shot"])
    assert [row.name for row in alone.rows] == ["zero-shot", "RMT, 2 tokens"], "in the order of the study"
    assert alone.compare == ()
    with pytest.raises(RecipeError, match="needs m; give movies="):
        load_study(path, ["books=x"], ["f*"])
    with pytest.raises(RecipeError, match=r"has no row 'memory'; it has 'zero-shot', 'RMT, 2 tokens', .*'films'"):
        load_study(path, ["books=x", "movies=y"], ["zero-shot", "memory"])


def test_settings_become_options() -> None:
    settings = {"lengths": [64, "4k"], "reset": True, "join": False, "split": None, "option": {"a": 1, "b": "x"}}
    assert options_of(settings) == ["--lengths", "64,4k", "--reset", "--option", "a=1", "--option", "b=x"]


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, [], "needs a folder of texts; give books="),
        ({}, ["books"], "'books' is not NAME=VALUE"),
        ({}, ["books=x", "films=y"], "needs no 'films'; it needs books"),
        ({"rows": []}, ["books=x"], "rows: .*at least 1 item"),
        ({"rows": [{"name": "a/b"}]}, ["books=x"], "'a/b' is no name for a row"),
        ({"rows": [{"name": "a b"}, {"name": "a.b"}], "compare": []}, ["books=x"], "two of them would be kept in one"),
        ({"rows": [{"name": "a", "like": "b"}], "compare": []}, ["books=x"], "'a' is like 'b', which is no row"),
        ({"rows": [{"name": "a", "model": "m", "set": {"x": 1}}], "compare": []}, ["books=x"], "'a' is not trained"),
        ({"rows": [{"name": "a", "model": "m", "like": "b"}], "compare": []}, ["books=x"], "leave one of them out"),
        ({"recipe": None}, ["books=x"], "'RMT, 2 tokens' has no recipe"),
        ({"compare": [["zero-shot", "one-shot"]]}, ["books=x"], "compare: there is no row 'one-shot'"),
        ({"seeds": [1, 1]}, ["books=x"], "seeds: one is there twice"),
        ({"nonsense": 1}, ["books=x"], "nonsense: Extra inputs"),
    ],
)
def test_bad_studies_are_named(tmp_path: Path, changes: dict[str, Any], given: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match="(?s)" + message):
        load_study(written(tmp_path, **changes), given)


def test_the_command_shows_what_it_would_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from recurrent_memory.cli import main

    path = str(written(tmp_path))
    assert main(["study", path, "books=b", "--out", str(tmp_path / "out"), "--jobs", "2", "--check", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert len(shown["commands"]) == 7
    assert not (tmp_path / "out").exists()
    some = ["study", path, "books=b", "--out", "x", "--row", "zero*", "--check", "--json"]
    assert main(some) == 0
    assert len(json.loads(capfd.readouterr().out)["commands"]) == 1
    assert main(["study", path, "books=b"]) == 2
    assert "--out is missing" in capfd.readouterr().err
    assert main(["study", path, "books=b", "--out", "x", "--jobs", "0"]) == 2
    assert "--jobs 0: must be at least 1" in capfd.readouterr().err


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_studies_in_the_repository_are_valid(path: Path, tmp_path: Path) -> None:
    from recurrent_memory.training.experiment import load_experiment

    needs = yaml.safe_load(path.read_text()).get("needs", {})
    study = load_study(path, [f"{name}=x" for name in needs])
    trained: list[str] = []
    for unit in plan(study, tmp_path):
        assert "{" not in " ".join(unit.evaluation), "all that is needed has been put in"
        if unit.training is not None:
            recipe, *changes = (part for part in unit.training[1:] if part != "--resume")
            trained.append(load_experiment(recipe, changes).model_dump_json(exclude={"out"}))
    assert len(set(trained)) == len(trained) > 0, "no row is another's twin"
