"""`rmt train` on text, from a recipe to a perplexity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.errors import RecipeError
from recurrent_memory.training.experiment import load_experiment
from tiny_models import prose, tiny_backbone, tiny_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
S = 16


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("recurrent_memory.training.experiment.is_tensorboard_available", lambda: False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tiny_backbone().bfloat16().save_pretrained(tmp_path / "backbone")  # as many are stored
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "books").mkdir()
    for number in range(2):
        (tmp_path / "books" / f"{number}.txt").write_text(prose(60, number), "utf-8")
    (tmp_path / "valid.txt").write_text(prose(40, 7), "utf-8")
    values = {
        "name": "tiny",
        "expected": "nothing",
        "time": "a second",
        "cost": "nothing",
        "backbone": str(tmp_path / "backbone"),
        "memory": {"num_memory_tokens": 2, "segment_length": S, "carry": "gate"},
        "text": {"train": str(tmp_path / "books"), "valid": str(tmp_path / "valid.txt")},
        "trained": "lora",
        "lora": {"r": 2, "alpha": 4},
        "random_num_segments": False,
        "stages": [3],
        "max_steps": 6,
        "eval_every": 2,
        "batch": {"size": 2},
        "num_eval_examples": 4,
        "optimizer": {"learning_rate": 1e-2, "memory_learning_rate": 1e-1},
        "out": str(tmp_path / "model"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_from_recipe_to_perplexity(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    (stage,) = rmt("train", recipe, "--json").json["stages"]
    rows = json.loads((tmp_path / "model.run/stage-1-segments-3/checkpoint-6/trainer_state.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in rows["log_history"] if "eval_loss" in row}
    assert list(losses) == [2, 4, 6]
    assert stage["loss"] == min(losses.values())
    assert Path(stage["checkpoint"]).name == f"checkpoint-{min(losses, key=lambda step: losses[step])}"
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "model")
    assert bool(loaded.memory.carry.gate.any()), "the gate has opened"
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.float32}
    command = ["eval", tmp_path / "model", "--task", "lm", "--text", tmp_path / "valid.txt"]
    kept = rmt(*command, "--out", tmp_path / "memory", "--json").json
    reset = rmt(*command, "--reset", "--against", tmp_path / "memory", "--out", tmp_path / "reset", "--json").json
    assert kept["nll"] != reset["nll"]
    assert reset["comparison"]["nll_a"] == pytest.approx(kept["nll"])


def test_the_row_without_memory(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    change = ["memory.num_memory_tokens=0", "memory.segment_length=64", "stages=[1]", "max_steps=2"]
    shown = rmt("train", recipe, *change)
    assert shown.status == 0
    assert "1 segments: 2 steps, held-out accuracy 0." in shown.out
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "model")
    assert loaded.memory_config.num_memory_tokens == 0
    assert any("lora_B" in name and bool(weight.any()) for name, weight in loaded.state_dict().items())
    command = ["eval", tmp_path / "model", "--task", "lm", "--text", tmp_path / "valid.txt", "--max-tokens", "100"]
    kept = rmt(*command, "--out", tmp_path / "kept", "--json").json
    assert kept["nll"] == rmt(*command, "--reset", "--out", tmp_path / "reset", "--json").json["nll"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("lm-*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_valid(rmt: Any, path: Path) -> None:
    assert rmt("train", path, "--check", "--json").json["valid"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["task={name: detect}"], "text and task are both given; a training learns one of them"),
        (["target_accuracy=0.9"], "target_accuracy is of a task; a training on text ends at max_steps"),
        (["stages=[{num_segments: 2, carried: {}}]"], "carried lanes are made from tasks"),
        (["text.loss_from_segment=0"], "text.loss_from_segment: Input should be greater than or equal to 1"),
        (["optimizer.memory_learning_rate=0"], "optimizer.memory_learning_rate: Input should be greater than 0"),
    ],
)
def test_bad_recipes(recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_experiment(recipe, changes)


def test_what_cannot_be_read_is_named(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    assert "text.train is empty: name a text" in rmt("train", recipe, "text.train=[]").error
    assert "task: is missing; say what is learned" in rmt("train", recipe, "text=").error
    assert not (tmp_path / "model").exists()
