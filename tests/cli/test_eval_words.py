"""`rmt eval --task lambada`: last words with memory, with it reset, in a window; bad calls are one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_models import prose, tiny_backbone, tiny_tokenizer


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    words = prose(30).split()
    path = tmp_path / "passages.jsonl"
    rows = [" ".join(words[start : start + 30]) for start in range(12)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    return path


def test_memory_and_window(rmt: Any, folder: Path, passages: Path, tmp_path: Path) -> None:
    common = ["--task", "lambada", "--text", passages, "--limit-documents", "10"]
    kept = rmt("eval", folder, *common, "--out", tmp_path / "memory", "--json").json
    assert {(line["kind"], line["n"]) for line in kept["lines"] if line["segments_before"] == "all"} == {
        ("memory", 10),
        ("reset", 10),
    }
    results = json.loads((tmp_path / "memory" / "results.json").read_text())
    assert {"commit", "versions", "processor", "date"} < results.keys()
    tiny_backbone().save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    window = ["eval", tmp_path / "plain", *common, "--window", "64", "--out", tmp_path / "window"]
    shown = rmt(*window, "--against", tmp_path / "memory")
    assert shown.status == 0, shown.err
    assert "window against memory of" in shown.out
    assert "window against reset of" in shown.out
    assert (
        (tmp_path / "window/accuracy.csv").read_text().startswith("kind,segments_before,n,accuracy,low,high,perplexity")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reset"], "--reset: is not for --task lambada"),
        (["--lengths", "1k"], "--lengths: is not for --task lambada"),
        (["--window", "8"], "--window: is for a plain model; this one has a memory"),
        (["--text", "no.jsonl"], "no.jsonl: no such path"),
    ],
)
def test_bad_calls(rmt: Any, folder: Path, passages: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = ["--text", passages] if "--text" not in arguments else []
    refused = rmt("eval", folder, "--task", "lambada", *given, "--out", tmp_path / "out", *arguments)
    assert message in refused.error
    assert not (tmp_path / "out").exists()
