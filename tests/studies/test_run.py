"""A study from its file to its table, with real processes; what fails, and going on."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from recurrent_memory.errors import InputError, OutputError, RecipeError
from recurrent_memory.evaluation.intervals import wilson
from recurrent_memory.locking import alone_in
from recurrent_memory.studies.definition import RowRecipe, Study
from recurrent_memory.studies.losses import pooled
from recurrent_memory.studies.plan import Unit, chains, plan
from recurrent_memory.studies.report import write_study
from recurrent_memory.studies.run import _open, run_study
from recurrent_memory.studies.sizes import by_size, draw_sizes
from recurrent_memory.studies.table import tabulate
from tiny_models import prose, tiny_backbone, tiny_tokenizer

DESCRIBED = {"expected": "-", "time": "-", "cost": "-"}


def quiet(_name: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture
def study(tmp_path: Path) -> Study:
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "train.txt").write_text(prose(60, 1))
    (tmp_path / "test.txt").write_text(prose(40, 2))
    recipe = {
        "name": "tiny", **DESCRIBED, "backbone": str(tmp_path / "backbone"), "trained": "all",
        "memory": {"num_memory_tokens": 2, "segment_length": 16}, "stages": [2], "max_steps": 2, "batch": {"size": 2},
        "num_eval_examples": 2, "out": "unused",
        "text": {"train": str(tmp_path / "train.txt"), "valid": str(tmp_path / "train.txt")},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    values = {
        "name": "tiny study", **DESCRIBED, "recipe": str(tmp_path / "recipe.yaml"), "seeds": [0, 1],
        "eval": {"task": "lm", "text": str(tmp_path / "test.txt"), "max_tokens": 300},
        "rows": [
            {"name": "as it is", "model": str(tmp_path / "backbone"), "eval": {"window": 16}},
            {"name": "memory", "set": {"optimizer.learning_rate": 0.01}},
            {"name": "memory reset", "like": "memory", "eval": {"reset": True}},
        ],
        "compare": [["memory reset", "memory"]],
    }  # fmt: skip
    return Study.model_validate(values)


def test_two_processes_do_not_run_a_study_in_one_folder(study: Study, tmp_path: Path) -> None:
    with alone_in(tmp_path / "out"), pytest.raises(OutputError, match="another process is writing there"):
        list(run_study(study, tmp_path / "out", tell=quiet))


def test_rows_may_come_later_and_may_not_change(study: Study, tmp_path: Path) -> None:
    def with_rows(*rows: RowRecipe) -> Study:
        return study.model_copy(update={"rows": rows, "compare": ()})

    first, memory, _ = study.rows
    _open(tmp_path / "out", with_rows(first), resume=False)
    _open(tmp_path / "out", with_rows(memory), resume=True)
    _open(tmp_path / "out", with_rows(first, memory), resume=True)
    with pytest.raises(InputError, match="holds a study with another row 'as it is'"):
        _open(tmp_path / "out", with_rows(first.model_copy(update={"eval": {"window": 8}})), resume=True)


@pytest.mark.slow
def test_from_study_to_table(study: Study, tmp_path: Path) -> None:
    out, told, shown = tmp_path / "out", list[str](), list[tuple[tuple[int, ...], int, int]]()
    units: list[Unit] = []
    for so_far, units in run_study(
        study, out, jobs=2, common=("--threads", "1"), tell=lambda name, _done, _total: told.append(name)
    ):
        shown.append((so_far.seeds, len(units), len(tabulate(so_far, units).cells)))
    assert len(told) == 2 * len(units) == 10
    assert shown[-1] == ((0, 1), 5, 7)
    assert shown[:-1] in ([], [((0,), 3, 3)]), "a table of the first seed, if that ended before the second"
    table = tabulate(study, units)
    perplexity = {(cell.row, cell.seed): cell.value for cell in table.cells}
    assert len({round(value, 6) for key, value in perplexity.items() if key[1] != "all"}) == 5, "all differ"
    one, other = perplexity["memory", "0"], perplexity["memory", "1"]
    assert perplexity["memory", "all"] == pytest.approx(math.sqrt(one * other))
    (gain,) = table.gains
    ratio = perplexity["memory", "all"] / perplexity["memory reset", "all"]
    assert gain.comparison.ratio == pytest.approx(ratio, rel=1e-4)  # losses are kept as float32
    text = write_study(study, units, table, out, "rmt study study.yaml")
    assert f"memory | {perplexity['memory', 'all']:.2f} (" in text
    assert "memory against memory reset: " in text
    results = json.loads((out / "results.json").read_text())
    assert len(results["commands"]) == 7
    assert results["ended"]["versions"]["torch"]
    assert len(list(csv.DictReader((out / "table.csv").read_text().splitlines()))) == len(table.cells) == 7
    points = list(csv.DictReader((out / "trainings.csv").read_text().splitlines()))
    assert {(point["row"], point["seed"]) for point in points} == {("memory", "0"), ("memory", "1")}
    assert all(float(point["held_out_loss"]) > 0 for point in points if point["step"] == "2" and not point["loss"])
    for picture in ("plot.png", "losses.png", "trainings.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert all(cost.evaluation_s > 0 for cost in table.costs)
    assert [cost.training_s is None for cost in table.costs] == [True, False, False]
    assert [cost.training_peak_rss_mb is None for cost in table.costs] == [
        True,
        *[not Path("/proc/self/status").exists()] * 2,
    ]
    record = json.loads((out / "records" / "memory-seed-0-train.json").read_text())
    assert (record["attempts"], record["jobs"]) == (1, 2)
    assert not list((out / "records").glob("*.spent"))

    with pytest.raises(OutputError, match="holds a study already; go on with --resume"):
        list(run_study(study, out, tell=quiet))
    other_study = study.model_copy(update={"eval": {**study.eval, "max_tokens": 200}})
    with pytest.raises(InputError, match="holds a study with another eval"):
        list(run_study(other_study, out, resume=True, tell=quiet))
    (out / "records" / "memory-reset-seed-0-eval.json").unlink()
    before = (out / "records" / "memory-reset-seed-1-eval.json").stat().st_mtime_ns
    *_, (_, again) = run_study(study, out, resume=True, common=("--threads", "1"), tell=quiet)
    assert tabulate(study, again).cells == table.cells
    assert (out / "records" / "memory-reset-seed-1-eval.json").stat().st_mtime_ns == before, "not run again"
    fewer = study.model_copy(update={"seeds": (0,)})
    ((so_far, left),) = run_study(fewer, out, resume=True, tell=quiet)
    assert (so_far, [unit.seed for unit in left]) == (fewer, [0, 0, 0])
    assert json.loads((out / "study.json").read_text())["study"]["seeds"] == [0]


@pytest.mark.slow
def test_what_fails_is_named(study: Study, tmp_path: Path) -> None:
    rows = (study.rows[0].model_copy(update={"model": str(tmp_path / "nowhere")}),)
    broken = study.model_copy(update={"rows": rows, "compare": ()})
    with pytest.raises(RecipeError, match=r"as it is, seed 0: `rmt eval` failed: .*nowhere.* \(log: .*eval\.log\)"):
        list(run_study(broken, tmp_path / "out", tell=quiet))


def test_models_are_made_before_they_are_used_and_seed_by_seed(tmp_path: Path) -> None:
    rows = [{"name": "reset", "like": "rmt"}, {"name": "rmt"}, {"name": "zero", "model": "m"}, {"name": "none"}]
    study = Study.model_validate({"name": "s", **DESCRIBED, "recipe": "r.yaml", "seeds": [3, 1], "rows": rows})
    names = [[unit.name for unit in chain] for chain in chains(plan(study, tmp_path))]
    first = [["rmt-seed-3", "reset-seed-3"], ["zero-seed-3"], ["none-seed-3"]]
    assert names == [*first, ["rmt-seed-1", "reset-seed-1"], ["none-seed-1"]]


def accuracies(right: int, length: int, **changes: Any) -> dict[str, Any]:
    line = {"by": "length", "group": "", "length": length, "n": 50, "accuracy": right / 50, "reset_accuracy": 0.1}
    ends = dict(zip(("low", "high", "reset_low", "reset_high"), (*wilson(right, 50), *wilson(5, 50)), strict=True))
    return {**line, **ends, **changes}


def test_accuracies_of_seeds_are_pooled(tmp_path: Path) -> None:
    rows = [{"name": "many tokens"}, {"name": "few"}]
    study = Study.model_validate({"name": "s", **DESCRIBED, "recipe": "r.yaml", "seeds": [0, 1], "rows": rows})
    units = plan(study, tmp_path)
    for number, unit in enumerate(units):
        unit.out.mkdir(parents=True)
        unit.records.mkdir(exist_ok=True)
        lines = [accuracies(40 + number, 64), accuracies(20 + number, 128), {"by": "facts"}]
        (unit.out / "results.json").write_text(json.dumps({"task": "detect", "lines": lines}))
        for kind in ("train", "eval"):
            unit.record(kind).write_text(json.dumps({"elapsed_s": 100.0 * (number + 1), "peak_rss_mb": 900.0 + number}))
    table = tabulate(study, units)
    pooled = {(c.row, c.metric, c.at): c for c in table.cells if c.seed == "all"}
    cell = pooled["few", "accuracy", "128"]
    assert (cell.n, cell.value, cell.low, cell.high) == (100, 0.44, *wilson(44, 100))
    assert pooled["few", "accuracy, memory reset", "64"].value == pytest.approx(0.1)
    assert [(cost.row, cost.training_s) for cost in table.costs] == [("many tokens", 200.0), ("few", 300.0)]
    assert [cost.training_peak_rss_mb for cost in table.costs] == [902.0, 903.0]
    (tmp_path / "study.json").write_text(json.dumps({"begun": {}}))
    text = write_study(study, units, table, tmp_path, "-")
    assert not (tmp_path / "losses.png").exists()
    assert text.splitlines()[0] == (
        "|  | accuracy at 64 | accuracy, memory reset at 64 | accuracy at 128 | accuracy, memory reset at 128 | training "
        "| evaluation | memory |"
    )
    assert text.splitlines()[3].startswith("| few | 0.840 (0.756–0.899) | 0.100")
    (units[0].out / "results.json").unlink()
    with pytest.raises(InputError, match="results.json: cannot be read"):
        tabulate(study, units)


def test_losses_of_seeds_are_pooled_by_their_tokens() -> None:
    def results(*lines: tuple[str, int, str, int, float]) -> dict[str, Any]:
        return {"lines": [dict(zip(("by", "first", "group", "n", "nll"), line, strict=True)) for line in lines]}

    one = results(("history", 0, "0", 10, 4.0), ("history", 2, "2–3", 30, 3.0), ("position", 0, "0", 99, 9.0))
    other = results(("history", 2, "2–3", 10, 1.0), ("history", 1, "1", 10, 2.0))
    assert pooled([one, other], "history") == [(0, "0", 4.0), (1, "1", 2.0), (2, "2–3", 2.5)]
    assert pooled([one, other], "position_with_history") == []


def test_accuracy_by_the_number_of_facts(tmp_path: Path) -> None:
    rows = [{"name": "tokens"}, {"name": "associative"}]
    described = {"name": "s", **DESCRIBED, "recipe": "r.yaml", "by": "facts", "rows": rows}
    study = Study.model_validate(described)
    units = plan(study, tmp_path)
    for number, unit in enumerate(units):
        unit.out.mkdir(parents=True)
        unit.records.mkdir(exist_ok=True)
        facts = [
            accuracies(right - 10 * number, 64, by="facts", group=group) for right, group in ((50, "2"), (30, "200"))
        ]
        results = {"task": "pairs", "lines": [accuracies(40, 64), *facts], "state_bytes": 1_000 * (number + 1)}
        (unit.out / "results.json").write_text(json.dumps(results))
        for kind in ("train", "eval"):
            unit.record(kind).write_text(json.dumps({"elapsed_s": 1.0}))
    table = tabulate(study, units)
    found = {(cell.row, cell.at): cell.value for cell in table.cells if cell.metric == "accuracy"}
    assert found == {("tokens", "2"): 1, ("tokens", "200"): 0.6, ("associative", "2"): 0.8, ("associative", "200"): 0.4}
    assert [cost.state_bytes for cost in table.costs] == [1_000, 2_000]
    (tmp_path / "study.json").write_text(json.dumps({"begun": {}}))
    assert write_study(study, units, table, tmp_path, "-").splitlines()[3].endswith("| 2,000 bytes |")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    curves = by_size(table, [cell for cell in table.cells if cell.metric == "accuracy"])
    held = {curve.at: list(zip(curve.sizes, [cell.value for cell in curve.cells], strict=True)) for curve in curves}
    assert held == {"2": [(1_000, 1), (2_000, 0.8)], "200": [(1_000, 0.6), (2_000, 0.4)]}
    alike = replace(table, costs=[replace(cost, state_bytes=500) for cost in table.costs])
    assert not draw_sizes(alike, table.cells, tmp_path / "none.png", title="s", places="facts")
    assert not (tmp_path / "none.png").exists()
