"""`rmt eval`: a table, a plot and every answer in a folder; bad calls are one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_models import S, prose


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.txt"
    path.write_text(prose(400), "utf-8")
    return path


def test_lengths_in_tokens_and_in_segments(rmt: Any, folder: Path, noise: Path, tmp_path: Path) -> None:
    common = ["--task", "memorize", "--noise", noise, "--lanes", "2", "--seed", "5", "--json"]
    values = rmt("eval", folder, *common, "--lengths", "160,1k", "--samples", "3,2", "--out", tmp_path / "a").json
    assert [(line["length"], line["n"]) for line in values["lines"] if line["by"] == "length"] == [(160, 3), (1_000, 2)]
    assert values["tokens"] > 0
    values = rmt("eval", folder, *common, "--segments", "10", "--samples", "3", "--out", tmp_path / "b").json
    assert [(line["length"], line["segments"]) for line in values["lines"][:1]] == [(10 * S, 10)]
    same = [json.loads((tmp_path / name / "results.json").read_text())["lines"][0] for name in "ab"]
    assert same[0] == same[1]
    assert (tmp_path / "a" / "accuracy.png").is_file()


def test_shortcuts_are_taken_or_not(rmt: Any, folder: Path, noise: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from recurrent_memory import RecurrentMemoryModel

    taken, advance = [], RecurrentMemoryModel.step
    monkeypatch.setattr(
        RecurrentMemoryModel,
        "step",
        lambda self, *args, **kwargs: (taken.append(self.fast), advance(self, *args, **kwargs))[1],
    )
    for fast in ("auto", "off"):
        taken.clear()
        command = ["eval", folder, "--lengths", "200", "--samples", "2", "--noise", noise, "--fast", fast]
        assert rmt(*command, "--out", tmp_path / fast).status == 0
        assert set(taken) == {fast}
        assert json.loads((tmp_path / fast / "results.json").read_text())["fast"] == fast
    rows = [[path.read_text() for path in sorted((tmp_path / fast / "rows").iterdir())] for fast in ("auto", "off")]
    assert rows[0] == rows[1]


def test_a_table_for_a_person_and_going_on(rmt: Any, folder: Path, noise: Path, tmp_path: Path) -> None:
    command = ["eval", folder, "--lengths", "200", "--samples", "2", "--noise", noise, "--out", tmp_path / "out"]
    shown = rmt(*command)
    assert shown.status == 0
    assert "memory reset" in shown.out
    assert "200" in shown.out
    assert "holds an evaluation already" in rmt(*command).error
    assert "0 tokens read" in rmt(*command, "--resume").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "100"], "--out: it is missing; name the folder to write"),
        (["--out", "x"], "--lengths / --segments: give either of them"),
        (["--out", "x", "--lengths", "1k", "--segments", "5"], "--lengths / --segments: give either of them"),
        (["--out", "x", "--lengths", "many"], "'many' is not a number of at least 1"),
        (["--out", "x", "--lengths", "100", "--samples", "0"], "'0' is not a number of at least 1"),
        (["--out", "x", "--lengths", "100", "--task", "sing"], "task 'sing' is unknown; there are detect, memorize"),
        (["--out", "x", "--lengths", "100", "--option", "source"], "--option 'source' is not key=value"),
        (["--out", "x", "--lengths", "100", "--option", "colour=red"], "does not take the options ['colour']"),
        (["--out", "x", "--lengths", "100", "--scoring", "kind"], "'kind' is neither exact nor babilong"),
        (["--out", "x", "--lengths", "100", "--boundary", "page"], "boundary='page' is unknown"),
        (["--out", "x", "--lengths", "100", "--noise", "missing.txt"], "noise missing.txt: no such path"),
        (
            ["--out", "x", "--lengths", "4", "--task", "pairs", "--option", "alone=true", "--noise", "y"],
            "--noise: the text of 'pairs' is its facts alone; leave it out",
        ),
        (["--out", "x", "--lengths", "100", "--task", "qa9"], "is not made on the fly"),
        (
            ["--out", "x", "--lengths", "100", "--fast", "very"],
            "fast='very' is not a way to compute; choose one of auto",
        ),
        (["--out", "x", "--task", "lm", "--window", "8", "--fast", "off"], "--fast: is not for a plain model"),
        (["--out", "x", "--segments", "5", "--dataset", "y"], "--dataset: takes --lengths, such as 4k,1M"),
        (["--out", "x", "--lengths", "4x", "--dataset", "y", "--task", "qa1"], "'4x' is no length of BABILong's sets"),
    ],
)
def test_bad_calls(
    rmt: Any, folder: Path, tmp_path: Path, monkeypatch: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert message in rmt("eval", folder, *arguments).error
    assert not (tmp_path / "x").exists()


def test_babilongs_sets(rmt: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sets" / "qa1").mkdir(parents=True)
    rows = [{"input": prose(60, seed), "question": "Where is Mary? ", "target": "garden"} for seed in range(4)]
    for name in ("0k", "1k"):
        (tmp_path / "sets" / "qa1" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["eval", folder, "--task", "qa1", "--dataset", tmp_path / "sets", "--lengths", "0k,1k"]
    values = rmt(*command, "--samples", "3", "--out", tmp_path / "out", "--json").json
    assert [(line["length"], line["n"]) for line in values["lines"]] == [(0, 3), (1_000, 3)]
    kept = json.loads((tmp_path / "out" / "rows" / "1k.json").read_text())
    assert [row["sample"] for row in kept] == [0, 1, 2]
    assert "holds an evaluation already" in rmt(*command, "--samples", "3", "--out", tmp_path / "out").error
    assert rmt(*command, "--samples", "3", "--out", tmp_path / "out", "--resume", "--json").json["tokens"] == 0
