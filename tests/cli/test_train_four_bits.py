"""`rmt train` of a recipe in 4 bits, and what is made of it: evaluated, read with, asked."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tiny_models import prose, tiny_backbone, tiny_tokenizer

SEGMENT = 24
HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setattr("recurrent_memory.training.experiment.is_tensorboard_available", lambda: False)
    tiny_backbone(positions=128).save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "noise.txt").write_text(prose(300), "utf-8")
    values = {
        "name": "tiny",
        "expected": "nothing",
        "time": "a second",
        "cost": "nothing",
        "backbone": str(tmp_path / "backbone"),
        "memory": {"num_memory_tokens": 2, "segment_length": SEGMENT},
        "task": {"name": "detect", "noise": str(tmp_path / "noise.txt")},
        "trained": "lora",
        "lora": {"r": 2, "target_modules": ["c_attn"], "bits": 4},
        "stages": [1, 2],
        "max_steps": 3,
        "eval_every": 2,
        "batch": {"size": 2},
        "num_eval_examples": 2,
        "out": str(tmp_path / "model"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed: make test-four-bit")
@pytest.mark.filterwarnings("default:::(bitsandbytes|triton)")
def test_from_a_recipe_to_an_evaluation(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    values = rmt("train", recipe, "--json").json
    assert [(row["num_segments"], row["num_steps"]) for row in values["stages"]] == [(1, 3), (2, 3)]
    assert rmt("train", recipe, "--resume", "--json").json["stages"] == values["stages"]
    model, noise = tmp_path / "model", tmp_path / "noise.txt"
    found = rmt(
        "eval", model, "--noise", noise, "--segments", "2,4", "--samples", "2", "--out", tmp_path / "e", "--json"
    )
    assert [line["length"] for line in found.json["lines"] if line["by"] == "length"] == [2 * SEGMENT, 4 * SEGMENT]
    assert rmt("read", noise, "--model", model, "--out", tmp_path / "a.safetensors").status == 0
    assert rmt("ask", tmp_path / "a.safetensors", "Where is Mary?", "--json").json["answer"] is not None
    assert (
        "int8: the weights of this model are packed into 4 bits"
        in rmt("read", noise, "--model", model, "--dtype", "int8", "--out", tmp_path / "b.safetensors").err
    )


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_without_bitsandbytes_one_line_says_what_is_missing(rmt: Any, recipe: Path) -> None:
    assert rmt("train", recipe).error.startswith(
        "lora.bits: 4 bits are computed by bitsandbytes, which is not installed; pip"
    )
