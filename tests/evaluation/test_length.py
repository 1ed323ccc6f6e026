"""Texts read together are answered as texts read alone; an evaluation goes on where it was stopped."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory.errors import ConfigError, InputError, OutputError
from recurrent_memory.evaluation.length import Group, GroupReading, Row, plan_groups
from recurrent_memory.evaluation.length_run import LengthEvaluation, evaluate_lengths, parse_lengths, samples_for
from recurrent_memory.evaluation.length_table import Line, tabulate
from recurrent_memory.evaluation.tables import write_csv
from recurrent_memory.inference.asking import ask
from recurrent_memory.models import load_model
from recurrent_memory.tasks.alone import draw_alone
from recurrent_memory.tasks.base import Sample, Task
from recurrent_memory.tasks.noise_source import NoiseSource, open_noise
from recurrent_memory.tasks.noise_window import NoiseWindow, SampleText
from recurrent_memory.tasks.pieces import PieceEncoder
from recurrent_memory.tasks.placing import draw_placed
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.tasks.scoring import exact_match
from tiny_models import S, prose, tiny_model, tiny_tokenizer

SEED = 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> NoiseSource:
    path = tmp_path_factory.mktemp("noise") / "text.txt"
    path.write_text(prose(2_000), encoding="utf-8")
    return open_noise(str(path))


def read_all(group: Group, task: Task, noise: NoiseSource) -> tuple[list[Row], int]:
    model = tiny_model().double()
    reading = GroupReading(group, model, tiny_tokenizer(), task, noise, seed=SEED, boundary="sentence", score=is_right)
    standing, tokens = reading.begin(), 0
    while standing.index < reading.num_segments:
        tokens += reading.advance(standing)
    return standing.rows, tokens


def is_right(answer: str, sample: Sample) -> bool:
    return exact_match(answer, sample.answer)


def alone(group: Group, task: Task, noise: NoiseSource, number: int, length: int) -> dict[str, Any]:
    """What a text is asked and answered when it is read alone, from its first token to its last."""
    model, tokenizer = tiny_model().double(), tiny_tokenizer()
    name = f"{SEED}/{task.name}{'' if task.placement == 'first' else f'/{length}'}/{number}"
    sample, targets, limit = draw_placed(task, PieceEncoder(tokenizer), group.lengths[0], random.Random(name))
    begin = random.Random(f"{name}/noise").randrange(noise.num_chars)
    window = NoiseWindow(noise.from_char(begin), tokenizer)
    text = SampleText(window, sample.facts, targets, "sentence", limit)
    ids = torch.from_numpy(text.slice(0, length))[None]
    answers = [
        ask(model, tokenizer, model.read(part), [sample.question])[0] for part in (ids, ids[:, (length - 1) // S * S :])
    ]
    return {
        "answer": answers[0].text,
        "probability": round(answers[0].probability, 6),
        "reset_answer": answers[1].text,
        "fact_token": text.fact_spans[max(sample.supporting)][0],
        "target": sample.answer,
    }


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("detect", Group(0, (0, 1, 2), (6 * S,))),
        ("detect", Group(2, (2, 3), (4_000,))),
        ("detect", Group(4, (4, 5), (203,))),  # ends inside a segment
        ("memorize", Group(0, (0, 1), (2 * S + 3, 3 * S, 10 * S + 1))),  # all lengths in one pass
        ("qa2", Group(0, (0, 1), (2_000,))),  # many facts
    ],
    ids=str,
)
def test_texts_read_together_answer_as_texts_read_alone(name: str, group: Group, noise: NoiseSource) -> None:
    task = load_task(name)
    rows, _ = read_all(group, task, noise)
    assert [(row.sample, row.length) for row in sorted(rows, key=lambda row: (row.length, row.sample))] == [
        (number, length) for length in group.lengths for number in group.samples
    ]
    for row in rows:
        expected = alone(group, task, noise, row.sample, row.length)
        assert {name: getattr(row, name) for name in expected} == expected
        assert row.right == exact_match(row.answer, row.target)


def test_every_text_has_a_noise_of_its_own_whatever_it_is_read_with(noise: NoiseSource) -> None:
    """Texts with the same noise would be right or wrong together, and intervals too narrow."""
    for name in ("memorize", "detect"):
        together, *apart = (
            GroupReading(
                Group(numbers[0], numbers, (20 * S,)), tiny_model(), tiny_tokenizer(), load_task(name), noise, seed=SEED,
                boundary="sentence", score=is_right,
            )
            for numbers in (tuple(range(6)), *((number,) for number in range(6)))
        )  # fmt: skip
        ids = together._ids(10 * S, 12 * S)
        assert torch.equal(ids, torch.cat([reading._ids(10 * S, 12 * S) for reading in apart]))
        assert len({tuple(row) for row in ids.tolist()}) == 6


def test_texts_of_facts_alone_answer_as_texts_read_alone(noise: NoiseSource) -> None:
    """Of as many pairs as are the length, whatever noise is given."""
    model, tokenizer = load_model("shipped", "cpu", "float64")
    task = load_task("pairs", num_pairs=[1, 30, 70], alone=True)
    for length, number in ((4, 1), (120, 30), (280, 70)):
        group = Group(0, (0, 1, 2), (length,))
        reading = GroupReading(group, model, tokenizer, task, noise, seed=SEED, boundary="sentence", score=is_right)
        standing = reading.begin()
        while standing.index < reading.num_segments:
            reading.advance(standing)
        assert [row.num_facts for row in standing.rows] == [number] * 3
        for row in standing.rows:
            name = f"{SEED}/pairs/{length}/{row.sample}"
            sample, text = draw_alone(task, PieceEncoder(tokenizer), length, random.Random(name))
            ids = torch.from_numpy(text.slice(0, length))[None]
            assert tokenizer.decode(ids[0, row.fact_token : row.fact_token + 3]).strip().split(" is ") == [
                row.question.removeprefix("? "),
                row.target,
            ]
            answer = ask(model, tokenizer, model.read(ids), [sample.question])[0]
            assert (answer.text, round(answer.probability, 6)) == (row.answer, row.probability)


def test_groups_ask_every_sample_at_every_length_once() -> None:
    for name in ("memorize", "detect"):
        groups = plan_groups(load_task(name), [100, 1_000, 500], [5, 2, 3], lanes=2)
        asked = sorted((length, number) for group in groups for length in group.lengths for number in group.samples)
        assert asked == sorted((length, n) for length, count in ((100, 5), (1_000, 2), (500, 3)) for n in range(count))
        assert len({group.name for group in groups}) == len(groups)
        assert all(len(group.samples) <= 2 for group in groups)
    with pytest.raises(ConfigError, match="give one number of samples for each length, all at least 1"):
        plan_groups(load_task("detect"), [100, 200], [5], lanes=2)


def test_a_task_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="length=8 is too short for the facts of 'qa2'"):
        draw_placed(load_task("qa2"), PieceEncoder(tiny_tokenizer()), 8, random.Random(0))


PLAN = LengthEvaluation("detect", (5 * S, 1_200), (3, 4), seed=SEED, lanes=2)


def run(noise: NoiseSource, out: Path, **options: Any) -> Any:
    plan = options.pop("plan", PLAN)
    return evaluate_lengths(tiny_model(), tiny_tokenizer(), load_task(plan.task), noise, plan, out, **options)


def test_an_evaluation_in_a_folder(noise: NoiseSource, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    result = run(noise, tmp_path / "out", tell=lambda *numbers: done.append(numbers))
    assert len(result.rows) == 7
    assert done[-1] == (3 * 5 * S + 4 * 1_200,) * 2
    assert done == sorted(done)
    whole = [line for line in result.lines if line.by == "length"]
    assert [(line.length, line.n, line.segments) for line in whole] == [(5 * S, 3, 5), (1_200, 4, 75)]
    kept = json.loads((tmp_path / "out/results.json").read_text())
    assert kept["lines"] == [line.to_dict() for line in result.lines]
    assert kept["state_bytes"] == tiny_model().initial_state(1).num_bytes
    assert kept["peak_rss_mb"] == result.peak_rss_mb
    assert kept["versions"]["torch"]
    assert (kept["noise_sha256"], kept["seed"], kept["lengths"]) == (noise.sha256, SEED, [5 * S, 1_200])
    assert (tmp_path / "out/accuracy.csv").read_text().startswith("by,length,segments,group,n,right,accuracy,low,high")
    assert (tmp_path / "out/accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "options"), [("pairs", {"alone": True}), ("qa2", {})])
def test_a_length_that_cannot_be_leaves_no_folder(
    name: str, options: dict[str, Any], noise: NoiseSource, tmp_path: Path
) -> None:
    plan = LengthEvaluation(name, (400, 3), (1, 1), options=options)
    with pytest.raises(ConfigError, match="length=3"):
        evaluate_lengths(tiny_model(), tiny_tokenizer(), load_task(name, **options), noise, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_evaluation_goes_on_to_the_same_answers(noise: NoiseSource, tmp_path: Path) -> None:
    expected = run(noise, tmp_path / "whole").rows
    for after in (1, 40, 100, 150):
        out, before = tmp_path / str(after), list[int]()

        def interrupt(done: int, total: int, after: int = after, before: list[int] = before) -> None:
            before.append(done)
            if len(before) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(noise, out, save_every_s=0.0, tell=interrupt)
        assert not (out / "results.json").exists()
        told: list[int] = []
        result = run(noise, out, resume=True, tell=lambda done, total, told=told: told.append(done))
        assert result.rows == expected
        # From what was kept last on: the speed that is shown is that of this run.
        assert told[0] == before[max(after - 2, 0)]
        assert not list(out.glob("partial*"))


def test_a_folder_with_an_evaluation_is_not_overwritten(noise: NoiseSource, tmp_path: Path) -> None:
    run(noise, tmp_path)
    with pytest.raises(OutputError, match="holds an evaluation already; go on with --resume, or give another --out"):
        run(noise, tmp_path)
    assert len(run(noise, tmp_path, resume=True).rows) == 7
    with pytest.raises(InputError, match="holds an evaluation with another samples, seed; give another --out"):
        run(noise, tmp_path, resume=True, plan=LengthEvaluation("detect", PLAN.lengths, (3, 5), seed=4, lanes=2))
    with pytest.raises(InputError, match="holds an evaluation with another options; give another --out"):
        run(noise, tmp_path, resume=True, plan=replace(PLAN, options={"source": "elsewhere"}))
    (tmp_path / "rows" / "80-0.json").write_text("[{")
    with pytest.raises(InputError, match=r"80-0\.json: is damaged .*; delete it"):
        run(noise, tmp_path, resume=True)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json: is damaged"):
        run(noise, tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        run(noise, tmp_path / "file" / "out")


def test_babilongs_scoring(noise: NoiseSource, tmp_path: Path) -> None:
    plan = LengthEvaluation("qa1", (1_500,), (2,), lanes=2, scoring="babilong")
    assert len(run(noise, tmp_path, plan=plan).rows) == 2


def row(length: int, sample: int, fact_token: int, right: bool, num_facts: int = 1) -> Row:
    return Row(length, sample, num_facts, fact_token, "Where?", "garden", "garden", 0.5, right, "", False)


def test_the_table(tmp_path: Path) -> None:
    rows = [row(100, 0, 5, True), row(100, 1, 99, False), row(1_000, 0, 500, True), row(1_000, 1, 950, True, 2)]
    lines = tabulate(rows, 64)
    found = {(line.by, line.length, line.group): (line.right, line.n) for line in lines}
    assert found == {
        ("length", 100, ""): (1, 2),
        ("length", 1_000, ""): (2, 2),
        ("position", 100, "0.0–0.2"): (1, 1),
        ("position", 100, "0.8–1.0"): (0, 1),
        ("position", 1_000, "0.4–0.6"): (1, 1),
        ("position", 1_000, "0.8–1.0"): (1, 1),
        ("facts", 100, "1"): (1, 2),
        ("facts", 1_000, "1"): (1, 1),
        ("facts", 1_000, "2"): (1, 1),
    }
    assert (lines[0].low, lines[0].high) == (0.0945, 0.9055)
    write_csv(Line, lines, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(lines)
    assert {line.by for line in tabulate([row(100, 0, 5, True), row(100, 1, 7, True)], 64)} == {"length"}


def test_numbers_of_a_command_line() -> None:
    assert parse_lengths("512, 4k,2M,1_000") == (512, 4_000, 2_000_000, 1_000)
    for text in ("", "1,,2", "0", "-1", "1.5k", "k", "many"):
        with pytest.raises(ConfigError, match="is not a number of at least 1; give such as 512,4k,2M"):
            parse_lengths(text)
    assert samples_for((1, 2, 3), (5,)) == (5, 5, 5)
    assert samples_for((1, 2), (5, 6)) == (5, 6)
    with pytest.raises(ConfigError, match="--samples has 2 numbers for 3 lengths"):
        samples_for((1, 2, 3), (5, 6))
    with pytest.raises(ConfigError, match="names a length twice"):
        LengthEvaluation("detect", (5, 5), (1, 1))
    with pytest.raises(ConfigError, match="scoring='soft' is unknown; give one of exact, babilong"):
        LengthEvaluation("detect", (5,), (1,), scoring="soft")  # type: ignore[arg-type]
