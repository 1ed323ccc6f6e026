"""What the README shows runs as it stands, with a small model in place of what would be downloaded."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recurrent_memory.cli import main
from recurrent_memory.training.experiment import Experiment
from tiny_models import prose, tiny_backbone, tiny_tokenizer

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    tiny_backbone(positions=1024).save_pretrained(tmp_path / "gpt2")
    ids = tiny_tokenizer()(prose(200), return_tensors="pt").input_ids
    names: dict[str, Any] = {
        "ids": ids,
        "mask": torch.ones_like(ids),
        "labels": ids,
        "question_ids": ids[:, :9],
        "folder": tmp_path / "folder",
    }
    exec(compile(example.replace('"gpt2"', 'str("gpt2")'), "README.md", "exec"), names)
    assert names["out"].loss is not None
    assert names["out"].logits.shape[1] == ids.shape[1]
    assert (tmp_path / "book.safetensors").is_file()


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("rmt ")]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "book.txt").write_text(prose(50), "utf-8")
    (tmp_path / "more.txt").write_text(prose(50, seed=1), "utf-8")
    ran: set[str] = set()
    for command in commands():
        arguments = shlex.split(command)[1:]
        ran.add(arguments[0])
        if arguments[0] == "train":
            arguments.append("--check")
        if arguments[0] == "eval":  # the model that would have been trained before is not there
            arguments[1] = str(ROOT / "src/recurrent_memory/models/small")
            arguments[arguments.index("--segments") + 1], arguments[arguments.index("--samples") + 1] = "1,3", "2"
        if arguments[0] == "demo":
            arguments[arguments.index("--tokens") + 1] = "2000"
        assert main(arguments) == 0, (command, capfd.readouterr().err)
    assert ran == {"read", "ask", "generate", "info", "demo", "train", "eval"}


def test_the_settings_of_a_training() -> None:
    (settings,) = blocks("yaml")
    given = {"name": "x", "expected": "x", "time": "x", "cost": "x", "out": "x", **yaml.safe_load(settings)}
    assert Experiment.model_validate(given).plan().planned()[-1].num_segments == 6
