"""BABILong's sets are read from copies and the hub; its score is the published one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError, InputError
from recurrent_memory.tasks.babilong import LongSample, babilong_match, iter_babilong, task_labels

BABI = Path(__file__).parents[3] / "shared/data/babi/en-10k"
ROW = {"input": "Noise. Mary went to the garden. Noise.", "question": "Where is Mary? ", "target": "garden"}


@pytest.mark.parametrize(
    ("output", "target", "question", "task", "right"),
    [
        ("Garden", "garden", "Where is Mary?", "qa1", True),
        ("The answer is the garden. Not the office.", "garden", "Where is Mary?", "qa1", True),
        ("garden or office", "garden", "Where is Mary?", "qa1", False),
        ("office", "garden", "Where is Mary?", "qa1", False),
        ("", "garden", "Where is Mary?", "qa1", False),
        (
            "The milk was in the office before the garden",
            "office",
            "Where was the milk before the garden?",
            "qa3",
            True,
        ),
        ("Fred gave it to Bill", "bill", "Who did Fred give the milk to?", "qa5", True),
        ("garden <example> office", "garden", "Where is Mary?", "qa1", True),
        ("<context> garden", "garden", "Where is Mary?", "qa1", False),
        ("milk and apple", "apple,milk", "What is Mary carrying?", "qa8", True),
        ("milk", "apple,milk", "What is Mary carrying?", "qa8", False),
        ("milk, apple, football", "apple,milk", "What is Mary carrying?", "qa8", False),
        ("s,w", "s,w", "How do you go from the garden to the office?", "qa19", True),
        ("I do not know", "no", "Is Mary in the garden?", "qa6", True),  # substrings count, as in the original
    ],
)
def test_the_published_score(output: str, target: str, question: str, task: str, right: bool) -> None:
    assert babilong_match(output, target, question, task_labels(task)) is right


def test_an_unknown_task_has_no_labels() -> None:
    with pytest.raises(ConfigError, match="task='qa21' has no list of answers; BABILong has qa1 to qa20"):
        task_labels("qa21")


@pytest.mark.data
@pytest.mark.skipif(not BABI.exists(), reason="needs ../shared/data/babi")
@pytest.mark.parametrize("number", range(1, 21))
def test_labels_are_the_answers_of_the_published_files(number: int) -> None:
    lines = next(BABI.glob(f"qa{number}_*_test.txt")).read_text().splitlines()
    answers = {line.split("\t")[1] for line in lines if "\t" in line}
    if number == 8:
        answers = {part for answer in answers for part in answer.split(",")}
    assert answers <= set(task_labels(f"qa{number}"))


@pytest.mark.parametrize("name", ["qa1/4k.jsonl", "data/qa1/4k.json", "qa1/4k.json"])
def test_a_copy_is_read_from_a_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    lines = name.endswith("jsonl")
    file.write_text("\n".join([json.dumps(ROW)] * 2) + "\n" if lines else json.dumps([ROW, ROW]))
    assert list(iter_babilong("qa1", "4k", str(tmp_path))) == [LongSample(**ROW)] * 2
    assert list(iter_babilong("qa1", "4k", str(file))) == [LongSample(**ROW)] * 2


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no qa1/4k with one of the endings .jsonl, .json, .parquet"):
        iter_babilong("qa1", "4k", str(tmp_path))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps({"input": "x", "target": 3}) + "\n")
    with pytest.raises(InputError, match=r"^rows.jsonl, row 2: expected text in the columns .*; no question$"):
        list(iter_babilong("qa1", "4k", str(file)))
    file.write_text("{broken\n")
    with pytest.raises(InputError, match=r"rows.jsonl: is not JSON, nor one JSON object a line"):
        list(iter_babilong("qa1", "4k", str(file)))
    parquet = tmp_path / "rows.parquet"
    parquet.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"rows.parquet: (to read parquet, `pip install pyarrow`|is not parquet)"):
        list(iter_babilong("qa1", "4k", str(parquet)))


def test_the_hub_is_read_a_sample_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((args, options))
        return [ROW]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert list(iter_babilong("qa1", "4k")) == [LongSample(**ROW)]
    assert asked == [(("RMT-team/babilong", "4k"), {"split": "qa1", "streaming": True})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="source RMT-team/babilong: no such path; to load it from the hub"):
        list(iter_babilong("qa1", "4k"))
