"""The published files are read as they are, and bad ones are refused with file and line."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recurrent_memory.errors import ConfigError, InputError
from recurrent_memory.tasks.babi import BabiFileTask, load_babi_samples
from recurrent_memory.tasks.babi.files import parse_babi
from recurrent_memory.tasks.base import Sample
from recurrent_memory.tasks.registry import load_task

BABI = Path(__file__).parents[3] / "shared/data/babi/en-10k"
STORY = "1 Mary got the milk there.\n2 Where is it? \tunknown\t1\n3 Mary went to the garden.\n4 Where is the milk? \tgarden\t1 3\n"
ASKED = (
    Sample(("Mary got the milk there.",), "Where is it?", "unknown", (0,)),
    Sample(("Mary got the milk there.", "Mary went to the garden."), "Where is the milk?", "garden", (0, 1)),
)


def test_other_questions_are_left_out_and_supporting_lines_become_facts(tmp_path: Path) -> None:
    file = tmp_path / "qa2_two-supporting-facts_test.txt"
    file.write_text(STORY + "1 John left.\n2 Who left?\tJohn\t1\n")
    samples = load_babi_samples("qa2", str(tmp_path))
    assert samples == (*ASKED, Sample(("John left.",), "Who left?", "John", (0,)))
    assert load_babi_samples("qa2", str(file)) == samples
    task = load_task("qa2", source=str(tmp_path))
    assert isinstance(task, BabiFileTask)
    assert task.answers == ("John", "garden", "unknown")
    assert {task.draw(random.Random(seed)).answer for seed in range(20)} == set(task.answers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mary went.\n", r"line 1: expected 'NUMBER SENTENCE', found 'Mary went.'"),
        ("1 Mary went.\n3 Mary left.\n", r"line 2: expected line number 2 or 1, found '3 Mary left.'"),
        ("1 Mary went.\n2 Where?\tgarden\n", r"line 2: expected 'NUMBER QUESTION<TAB>ANSWER<TAB>SUPPORTING NUMBERS'"),
        ("1 Mary went.\n2 Where?\tgarden\tx\n", r"line 2: expected 'NUMBER QUESTION<TAB>ANSWER"),
        (
            "1 Mary went.\n2 Where?\tgarden\t7\n",
            r"line 2: expected supporting numbers among the facts before it, 1 to 1",
        ),
        ("1 Where?\tgarden\t7\n", r"line 1: expected supporting numbers .*of which there are none"),
        ("1 Mary went.\n", r"has no question"),
        ("1 " + "x" * 100 + "\n\n", r"line 2: expected 'NUMBER SENTENCE', found ''"),
    ],
)
def test_a_bad_file_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^bad\.txt.*" + message) as caught:
        parse_babi("bad.txt", text.splitlines())
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 0 files qa7_\*_test.txt; give a folder with one"):
        load_babi_samples("qa7", str(tmp_path))
    (tmp_path / "latin.txt").write_bytes(b"1 caf\xe9\n")
    with pytest.raises(InputError, match=r"latin.txt: cannot be read as UTF-8 text"):
        load_babi_samples("qa7", str(tmp_path / "latin.txt"))
    with pytest.raises(ConfigError, match=r"'qa7' is not made on the fly \(qa1 to qa5 are\): give source=FOLDER"):
        load_task("qa7")


def _fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Any) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_has_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((args, options))
        texts = ["Mary got the milk there.", "Where is it? ", "Mary went to the garden.", "Where is the milk? "]
        story = {"text": texts, "answer": ["", "unknown", "", "garden"], "supporting_ids": [[], ["1"], [], ["1", "3"]]}
        return [{"story": story}]

    _fake_datasets(monkeypatch, load_dataset)
    assert load_babi_samples("qa2", "facebook/babi_qa", "train") == ASKED
    assert asked == [
        (("facebook/babi_qa", "en-10k-qa2"), {"split": "train", "revision": "refs/convert/parquet"}),
    ]


def test_a_hub_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise OSError("no network\nmore")

    _fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(
        InputError, match=r"^source some/set: no such path, and not loadable from the hub \(no network\)$"
    ):
        load_babi_samples("qa2", "some/set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match="source some/set: no such path; to load it from the hub, `pip install datasets`"
    ):
        load_babi_samples("qa2", "some/set")


@pytest.mark.data
@pytest.mark.skipif(not BABI.exists(), reason="needs ../shared/data/babi")
@pytest.mark.parametrize("number", range(1, 21))
def test_all_published_files_are_read(number: int) -> None:
    samples = load_babi_samples(f"qa{number}", str(BABI), "test")
    text = next(BABI.glob(f"qa{number}_*_test.txt")).read_text()
    assert len(samples) == text.count("\t") // 2 == 1000 or number == 5
    for sample in samples[:50]:
        assert sample.facts
        assert all(fact in text for fact in sample.facts)
        assert f"{sample.question}" in text
