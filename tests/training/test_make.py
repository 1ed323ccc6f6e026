"""A recipe makes a model that loads, logs what it does, and goes on from its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recurrent_memory.errors import InputError, RecipeError
from recurrent_memory.models import load_model
from recurrent_memory.training.loop import Trainer
from recurrent_memory.training.make import make
from recurrent_memory.training.recipe import Recipe
from tiny_models import prose

STAGE = {"num_segments": 2, "segment_length": 24, "lifetime": 4, "facts": [0.5, 2], "distractors": [0.2], "lanes": 4,
         "learning_rate": 1e-3, "max_steps": 6, "probe": 0.5, "binding": 0.1, "keep": 1.0,
         "drop_lost": True, "first_facts": 1.0}  # fmt: skip


def recipe(folder: Path, **changes: object) -> Recipe:
    (folder / "noise.txt").write_text(prose(600))
    values: dict[str, object] = {
        "name": "tiny",
        "expected": "nothing; it only has to run",
        "backbone": {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "intermediate_size": 32, "max_position_embeddings": 32, "tie_word_embeddings": True},
        "memory": {"num_memory_tokens": 2, "segment_length": 24},
        "tokenizer": {"vocab_size": 500, "training_chars": 20_000},
        "noise": [str(folder / "noise.txt")],
        "stages": [STAGE, {**STAGE, "max_steps": 4}],
        "out": str(folder / "model"),
        "checkpoint_every_s": 0.0,
    }  # fmt: skip
    return Recipe.model_validate({**values, **changes})


def test_a_recipe_makes_a_model_that_loads(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    last = make(recipe(tmp_path, stages=[{**STAGE, "max_steps": 50}]), report=rows.append)
    assert last["stage"] == 1
    assert last["steps"] == 50
    assert rows[0]["step"] == 50
    model, tokenizer = load_model(tmp_path / "model")
    text = "Zoë\u2003said:\n\n\tñandú 🙂 12345  x = {1: 'a'}\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text, "the vocabulary is lossless"
    assert model.read(torch.tensor([tokenizer(prose(20))["input_ids"]])).memory.isfinite().all()
    assert json.loads((tmp_path / "model.run/log.jsonl").read_text().splitlines()[0])["step"] == 50


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Trainer._step, 0

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise KeyboardInterrupt
        return step(*arguments)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(recipe(tmp_path))
    with pytest.raises(RecipeError, match="go on with --resume"):
        make(recipe(tmp_path))
    last = make(recipe(tmp_path), resume=True)
    assert last["stage"] == 2
    assert last["steps"] == 10


def test_the_moments_of_the_optimizer_come_back(tmp_path: Path) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    original = Trainer.run

    def watch(trainer: Trainer, save: object) -> object:
        kept.append(
            {
                f"{i}.{k}": v.clone()
                for i, p in enumerate(trainer.modules.parameters())
                for k, v in trainer.optimizer.state.get(p, {}).items()
            }
        )
        result = original(trainer, save)  # pyright: ignore[reportArgumentType]
        kept.append(
            {
                f"{i}.{k}": v.clone()
                for i, p in enumerate(trainer.modules.parameters())
                for k, v in trainer.optimizer.state.get(p, {}).items()
            }
        )
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", watch)
        make(recipe(tmp_path))
        make(recipe(tmp_path, stages=[STAGE, {**STAGE, "max_steps": 4}, STAGE]), resume=True)
    assert kept[0] == {}
    assert kept[1].keys() == kept[2].keys()
    assert all(torch.equal(kept[1][k], kept[2][k]) for k in kept[1])


def test_nothing_to_resume_and_no_noise_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no checkpoint to resume from"):
        make(recipe(tmp_path), resume=True)
    with pytest.raises(InputError, match="noise is empty"):
        make(recipe(tmp_path, noise=[]))


def test_a_loss_that_is_not_finite_stops_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the loss became inf"):
        make(recipe(tmp_path, stages=[{**STAGE, "probe": float("inf")}]))
