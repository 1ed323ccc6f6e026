"""The tables of who is where, from rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.whereabouts import is_done
from benchmarks.whereabouts_report import write_report
from recurrent_memory.errors import InputError


def test_tables_hold_every_mode_with_its_intervals_and_count_the_lines_at_chance(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for mode, length, right, reset in (("anywhere", 1024, 10, 10), ("anywhere", 65536, 9, 2), ("four", 65536, 5, 9)):
        rows = [
            {"mode": mode, "length": length, "right": i < right, "reset_right": i < reset, "answer": "office"}
            for i in range(10)
        ]
        lines = [{"job": mode, "seed": 0}, *rows]
        (tmp_path / "rows" / f"{mode}-{length}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path)
    text = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    assert "| 65,536 | 512 | 10 | 0.900 (0.596–0.982) | 0.200 (0.057–0.510) |" in text
    assert "| 1,024 | 8 | 10 | 1.000 (0.722–1.000) | 1.000 (0.722–1.000) |" in text
    assert "| 65,536 | 512 | 10 | 0.500 (0.237–0.763) | 0.900 (0.596–0.982) |" in text
    assert "one fact first" not in text
    # Of the lines of 64 segments and more, the second is at chance and the third is not.
    assert "chance, 1/6, in 1 of 2 lines" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows",
        *(f"accuracy.{kind}" for kind in ("csv", "json", "md", "png")),
    }


def test_answers_of_another_model_or_dtype_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    path = tmp_path / "four-65536-50-1.jsonl"
    assert not is_done(path, "abc", "float32")
    path.write_text(json.dumps({"fingerprint": "abc"}) + "\n")
    assert is_done(path, "abc", "float32")
    for fingerprint, dtype in (("abc", "int8"), ("def", "float32")):
        with pytest.raises(InputError, match=r"four-65536-50-1.jsonl: .*give another --out"):
            is_done(path, fingerprint, dtype)
