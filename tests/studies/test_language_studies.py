"""The tables of language models are fair: one budget for every row, and beside every memory what it is to be compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recurrent_memory.studies.definition import Study, load_study
from recurrent_memory.studies.plan import plan
from recurrent_memory.training.experiment import Experiment, load_experiment

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("lm-*.yaml"))


@pytest.fixture(params=STUDIES, ids=lambda path: path.stem)
def study(request: pytest.FixtureRequest) -> Study:
    return load_study(
        request.param, [f"{name}=x" for name in yaml.safe_load(request.param.read_text()).get("needs", {})]
    )


def trained(study: Study) -> dict[str, Experiment]:
    """The rows that are trained."""
    seed = study.seeds[0]
    return {
        unit.row: load_experiment(unit.training[1], [part for part in unit.training[2:] if part != "--resume"])
        for unit in plan(study, Path("out"))
        if unit.training is not None and unit.seed == seed
    }


def test_every_row_has_one_budget(study: Study) -> None:
    rows = list(trained(study).values())
    tokens: list[int] = []
    for row in rows:
        (stage,) = row.stages
        tokens.append(row.batch.size * stage.num_segments * row.memory["segment_length"])
        assert (row.max_steps, row.optimizer, row.lora, row.text) == (
            rows[0].max_steps, rows[0].optimizer, rows[0].lora, rows[0].text
        )  # fmt: skip
        assert stage.max_steps is None
        assert not row.random_num_segments
    assert min(tokens) > 0.96 * max(tokens), (
        "six segments do not quite fill the window, nor one with memory that of GPT-2"
    )


def test_the_rows_of_gpt2_fit_its_positions(study: Study) -> None:
    if study.name.startswith("lm-wikitext"):
        memories = [row.memory for row in trained(study).values()]
        rows = [memory["segment_length"] + 2 * memory["num_memory_tokens"] for memory in memories]
        assert max(rows) == 1024


def test_a_memory_stands_beside_what_it_is_compared_with(study: Study) -> None:
    experiments = trained(study)
    lengths = {name: row.memory["segment_length"] for name, row in experiments.items()}
    with_memory = {name: lengths[name] for name, row in experiments.items() if row.memory["num_memory_tokens"]}
    without = {lengths[name] for name in experiments.keys() - with_memory.keys()}
    zero_shot = {row.eval["window"] for row in study.rows if row.model is not None}
    for length in set(with_memory.values()):
        assert length in without
        assert length in zero_shot
    assert max(without) == max(zero_shot), "the full window"
    assert max(without) >= max(with_memory.values())
    assert max(without) > min(with_memory.values())
    if study.eval["task"] == "lm":  # last words have it reset beside every score
        reset = {with_memory[row.like] for row in study.rows if row.like is not None and row.eval.get("reset")}
        assert reset == set(with_memory.values())


def test_writing_is_compared_with_a_prefix_that_carries_nothing(study: Study) -> None:
    if study.name in ("lm-history", "lm-lambada"):
        pytest.skip("asks something else of the same memories")
    carries = {name: row.memory.get("carry", "hidden") for name, row in trained(study).items()}
    prefixes = {name for name, carry in carries.items() if carry == "first"}
    assert {one for pair in study.compare for one in pair} & prefixes
    assert any(set(pair) & prefixes and set(pair) - prefixes for pair in study.compare)
