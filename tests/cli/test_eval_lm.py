"""`rmt eval --task lm`: perplexity with memory, without, in a window; bad calls are one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM

from tiny_models import tiny_backbone, tiny_tokenizer


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    tiny_backbone().save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_memory_reset_and_window(rmt: Any, folder: Path, plain: Path, book: Path, tmp_path: Path) -> None:
    common = ["--task", "lm", "--text", book, "--lanes", "2", "--max-tokens", "300"]
    kept = rmt("eval", folder, *common, "--out", tmp_path / "memory", "--json").json
    assert (kept["scored_tokens"], kept["documents"], kept["comparison"]) == (300, 1, None)
    results = json.loads((tmp_path / "memory" / "results.json").read_text())
    assert {"commit", "versions", "processor", "date"} < results.keys()
    assert {line["by"] for line in kept["lines"]} == {"all", "position", "position_with_history", "history"}
    command = ["eval", folder, *common, "--reset", "--against", tmp_path / "memory", "--out", tmp_path / "reset"]
    compared = rmt(*command, "--json").json
    assert compared["comparison"]["nll_a"] == pytest.approx(kept["nll"])
    assert compared["comparison"]["nll_b"] == pytest.approx(compared["nll"])
    assert "holds an evaluation already" in rmt(*command).error
    shown = rmt(*command, "--resume")
    assert shown.status == 0
    for words in ("By segments of history", "300 tokens scored in 1 documents, 1 not", "times the other's", "0 tokens"):
        assert words in shown.out
    window = rmt(
        "eval", plain, *common, "--window", "64", "--stride", "32", "--out", tmp_path / "window", "--json"
    ).json
    assert window["scored_sha256"] == kept["scored_sha256"]
    settings = json.loads((tmp_path / "window" / "evaluation.json").read_text())
    assert (settings["reading"], settings["window"], settings["stride"]) == ("window", 64, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "book.txt"], "--out: it is missing"),
        (["--out", "x"], "--text: it is missing; name a file, a folder or a hub id"),
        (["--out", "x", "--text", "no.txt"], "no.txt: no such path"),
        (["--out", "x", "--text", "empty.txt"], "is empty"),
        (["--out", "x", "--text", "book.txt", "--lengths", "1k"], "--lengths: is not for --task lm"),
        (["--out", "x", "--text", "book.txt", "--task", "detect"], "--text: is not for --task detect"),
        (["--out", "x", "--text", "book.txt", "--stride", "4"], "--stride: goes with --window"),
        (["--out", "x", "--text", "book.txt", "--window", "64", "--reset"], "--reset: a window has no memory"),
        (["--out", "x", "--text", "book.txt", "--window", "64"], "--window: is for a plain model"),
        (["--out", "x", "--text", "book.txt", "--max-tokens", "0"], "max_tokens=0 must be at least 1"),
        (["--out", "x", "--text", "book.txt", "--lanes", "0"], "lanes=0 must be at least 1"),
        (["--out", "x", "--text", "book.txt", "--bos"], "--bos: the tokenizer has no beginning-of-text token"),
        (["--out", "x", "--text", "book.txt", "--against", "y"], "y: holds no finished evaluation"),
    ],
)
def test_bad_calls(rmt: Any, folder: Path, book: Path, monkeypatch: Any, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(book.parent)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (book.parent / "empty.txt").touch()
    assert message in rmt("eval", folder, "--task", "lm", *arguments).error
    assert not (book.parent / "x").exists()


def test_bad_models(rmt: Any, plain: Path, book: Path, tmp_path: Path) -> None:
    common = ["--task", "lm", "--text", book, "--out", tmp_path / "out"]
    assert "--window: is missing: the model has no memory" in rmt("eval", plain, *common).error
    assert "window=65 must be 1 to the model's 64 positions" in rmt("eval", plain, *common, "--window", "65").error
    assert "no such model folder" in rmt("eval", "./nothing", *common, "--window", "9").error
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=320, **size)).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    error = rmt("eval", tmp_path / "bert", *common, "--window", "9").error
    assert "a model of the family 'encoder' does not continue a text" in error
    assert not (tmp_path / "out").exists()
