"""Training on carried lanes is the plain loop, and goes on exactly where it was stopped."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recurrent_memory.errors import RecipeError, RecurrentMemoryError
from recurrent_memory.training import carried
from recurrent_memory.training.carried_lanes import CarriedLanes
from recurrent_memory.training.carried_lessons import Lessons
from recurrent_memory.training.checkpoint import random_states, save_values
from recurrent_memory.training.make import _new_model, make
from recurrent_memory.training.noise import load_noise
from recurrent_memory.training.tokenizer import train_tokenizer
from tiny_models import prose
from training.carried_recipe import LONG_LIVED, STAGE, STAGES, logged, recipe


@pytest.fixture(autouse=True, scope="module")
def one_thread_every_row() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carried, "LOG_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    make(recipe(folder))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def stop_at(steps: int) -> Callable[[dict[str, Any]], None]:
    def report(row: dict[str, Any]) -> None:
        if row["steps"] == steps:
            raise KeyboardInterrupt

    return report


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("something was unpickled")


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    assert logged(folder) == logged(other)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch, pickle):
        monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    # In a stage, in the first step of the next one, in one whose lanes are lost and forgotten.
    for steps in (2, 4, 6):
        with pytest.raises(KeyboardInterrupt):
            make(recipe(tmp_path), resume=steps > 2, report=stop_at(steps))
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(123 + steps)
    last = make(recipe(tmp_path), resume=True)
    assert_same(tmp_path, whole)
    rows = logged(whole)
    assert [row["steps"] for row in rows] == list(range(1, 10))
    assert len({row["loss"] for row in rows}) == 9
    assert rows[-1]["lost"] > 0
    assert last["stage"] == 3


def test_another_stage_goes_on_from_the_last_one(tmp_path: Path, whole: Path) -> None:
    make(recipe(tmp_path, stages=STAGES[:2]))
    make(recipe(tmp_path), resume=True)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("seed", [5, None])
def test_a_stage_with_a_seed_does_not_depend_on_what_was_drawn_before(tmp_path: Path, seed: int | None) -> None:
    stages = [STAGES[0], {**LONG_LIVED, "unknown": 1.0, "seed": seed}]
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        make(recipe(folder, stages=stages[:1]))
        for path in folder.glob("model.run/stage-1/checkpoint-*/random-0.safetensors"):
            torch.manual_seed(len(name))
            save_values(random_states(torch.device("cpu")), path)
        make(recipe(folder, stages=stages), resume=True)
    ones, others = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(weight, others[name]) for name, weight in ones.items()) == (seed is not None)


def test_a_stage_is_the_plain_loop(tmp_path: Path) -> None:
    plan = recipe(tmp_path, stages=[{**LONG_LIVED, "max_steps": 5}], checkpoint_every_s=60)
    make(plan)
    torch.manual_seed(plan.seed)
    noise = load_noise(plan.noise, plan.noise_chars, plan.seed)
    tokenizer = train_tokenizer(noise, plan.tokenizer.vocab_size, plan.tokenizer.training_chars, plan.seed)
    model, stage = _new_model(plan, tokenizer).train(), plan.stages[0]
    lessons = Lessons(model, tokenizer)
    optimizer = torch.optim.AdamW(lessons.parameters(), betas=plan.betas, weight_decay=plan.weight_decay)
    lanes = CarriedLanes(stage, model, tokenizer.backend_tokenizer, noise, f"{plan.seed}/0/0")
    for step in range(stage.max_steps):
        optimizer.param_groups[0]["lr"] = stage.learning_rate_at(step)
        lanes.renew(step)
        loss = lessons.read(stage, lanes)
        assert loss is not None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lessons.parameters(), plan.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        lessons.count_loss(float(loss.detach()))
        lessons.find_lost(lanes)
        lessons.progress.count(0.0)
        assert logged(tmp_path)[step]["loss"] == round(lessons.progress.loss, 4)
    for name, weight in weights(tmp_path).items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_a_checkpoint_is_safetensors_and_json_without_the_texts(whole: Path) -> None:
    run = whole / "model.run"
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith("events.out.tfevents.")]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".png"}
    last = run / "stage-2/checkpoint-4"
    lanes = json.loads((last / "lanes.json").read_text())["lanes"]
    assert len(lanes) == 4
    assert [0, 0] in [lane["document"] for lane in lanes]
    assert prose(600)[100:140] not in (last / "lanes.json").read_text()
    assert sorted(path.name for path in (run / "stage-2").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was stopped in its first stage."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        make(recipe(folder), report=stop_at(2))
    return folder


@pytest.mark.parametrize(
    "name", ["lanes.json", "progress.json", "trainer_state.json", "tokenizer.json", "training.safetensors",
             "random-0.safetensors", "model.safetensors"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named(tmp_path: Path, stopped: Path, name: str) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.run/stage-1/checkpoint-1" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecurrentMemoryError, match="stage-1/checkpoint-1"):
        make(recipe(tmp_path), resume=True)


def test_other_noise_and_other_lanes_are_named(tmp_path: Path, stopped: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RecipeError, match="is of a stage with 4 lanes, not 5; resume with the same recipe"):
        make(recipe(tmp_path, stages=[{**STAGE, "lanes": 5}]), resume=True)
    (tmp_path / "noise.txt").write_text(prose(601))
    with pytest.raises(RecipeError, match="was trained on other noise than this; give the same texts"):
        make(recipe(tmp_path), resume=True)
