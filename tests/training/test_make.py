"""A recipe makes a model that loads, logs what it does, and names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recurrent_memory.errors import InputError, OutputError, RecipeError
from recurrent_memory.locking import alone_in
from recurrent_memory.models import load_model
from recurrent_memory.training.make import make
from tiny_models import prose
from training.carried_recipe import STAGE, recipe


def test_a_recipe_makes_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = []
    stages = [{**STAGE, "max_steps": 50, "drop_lost": True}]
    last = make(recipe(tmp_path, stages=stages, checkpoint_every_s=60), report=rows.append)
    assert last["stage"] == 1
    assert last["steps"] == 50
    assert [row["step"] for row in rows] == [50]
    assert last.keys() == rows[0].keys()
    assert json.loads((tmp_path / "model.run/log.jsonl").read_text()) == rows[0]
    assert capsys.readouterr().out == "", "the command's own output goes there"
    model, tokenizer = load_model(tmp_path / "model")
    text = "Zoë\u2003said:\n\n\tñandú 🙂 12345  x = {1: 'a'}\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text, "the vocabulary is lossless"
    assert model.read(torch.tensor([tokenizer(prose(20))["input_ids"]])).memory.isfinite().all()
    assert (tmp_path / "model.run/stage-1/curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecipeError, match="a training is there already; go on with --resume"):
        make(recipe(tmp_path, stages=stages))


def test_a_stage_ends_at_its_target(tmp_path: Path) -> None:
    stages = [{**STAGE, "max_steps": 200, "target": 0.0, "lanes": 1, "num_segments": 1, "keep": 0.0}]
    assert make(recipe(tmp_path, stages=stages, checkpoint_every_s=60))["steps"] == 100


def test_a_training_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    stages = [{**STAGE, "max_steps": 2}]
    (tmp_path / "model.run/stage-1").mkdir(parents=True)
    resumed = make(recipe(tmp_path, stages=stages), resume=True)
    whole = make(recipe(tmp_path, stages=stages, out=str(tmp_path / "whole")))
    assert resumed["steps"] == whole["steps"] == 2
    one, other = weights(tmp_path / "model"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_to_resume_and_no_noise_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is nothing to resume; train without --resume"):
        make(recipe(tmp_path), resume=True)
    with pytest.raises(InputError, match="noise is empty"):
        make(recipe(tmp_path, noise=[]))
    with (
        alone_in(tmp_path / "model.run"),
        pytest.raises(OutputError, match=r"model\.run: another process is writing there"),
    ):
        make(recipe(tmp_path))


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    infinite = {**STAGE, "probe": float("inf")}
    with pytest.raises(RecipeError, match="the loss became inf in stage 1, step 1; there is no checkpoint yet"):
        make(recipe(tmp_path, stages=[infinite]))
    with pytest.raises(RecipeError, match="inf in stage 2, step 1; the last good checkpoint is .*stage-1/checkpoint-1"):
        make(recipe(tmp_path, stages=[{**STAGE, "max_steps": 1}, infinite]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder, "cpu", "float32")[0].state_dict()


def test_a_stage_that_begins_anew_depends_on_the_weights_before_it_alone(tmp_path: Path) -> None:
    """Trained in one go, or further from the model that the stages before it made: the same model."""
    anew = {**STAGE, "anew": True, "seed": 3, "lanes_seed": 7, "hold": 0.25}
    make(recipe(tmp_path, stages=[STAGE, anew], out=str(tmp_path / "whole")))
    make(recipe(tmp_path, stages=[STAGE], out=str(tmp_path / "first")))
    further = {"model": str(tmp_path / "first"), "backbone": {}, "memory": {}, "out": str(tmp_path / "further")}
    make(recipe(tmp_path, stages=[anew], **further))
    whole, apart = weights(tmp_path / "whole"), weights(tmp_path / "further")
    assert all(torch.equal(whole[name], apart[name]) for name in whole)
    first = weights(tmp_path / "first")
    assert not all(torch.equal(whole[name], first[name]) for name in whole)
    model = load_model(tmp_path / "whole", "cpu", "float32")[0]
    assert model.memory_config.hold == model.memory.carry.hold == 0.25
    assert load_model(tmp_path / "first", "cpu", "float32")[0].memory_config.hold == 0


def test_a_model_may_be_saved_with_another_hold_than_it_was_trained_with(tmp_path: Path) -> None:
    stages = [{**STAGE, "max_steps": 1, "hold": 0.5}]
    make(recipe(tmp_path, stages=stages, out=str(tmp_path / "firm")))
    make(recipe(tmp_path, stages=stages, out=str(tmp_path / "softer"), final_hold=0.3))
    firm, softer = (load_model(tmp_path / name, "cpu", "float32")[0] for name in ("firm", "softer"))
    assert (firm.memory_config.hold, softer.memory_config.hold) == (0.5, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(firm.parameters(), softer.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "shipped"}, "either a model, to train further, or a backbone"),
        ({"backbone": {}}, "either a model, to train further, or a backbone"),
        ({"model": "shipped", "backbone": {}}, "a model has a memory already"),
        ({"stages": [{**STAGE, "hold": 0.5}], "memory": {}}, "hold is for memories of signs"),
        ({"final_hold": 0.5, "memory": {}}, "hold is for memories of signs"),
        ({"stages": [{**STAGE, "sparse": -1}]}, "greater than or equal to 0"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(tmp_path: Path, changes: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        recipe(tmp_path, **changes)


def test_only_signs_are_held(tmp_path: Path) -> None:
    papers = {"num_memory_tokens": 2, "segment_length": 24}
    make(recipe(tmp_path, stages=[{**STAGE, "keep": 0.0}], memory=papers))
    held = {"model": str(tmp_path / "model"), "backbone": {}, "memory": {}, "out": str(tmp_path / "held")}
    with pytest.raises(RecipeError, match="hold is for memories of signs, which this model's is not"):
        make(recipe(tmp_path, stages=[{**STAGE, "hold": 0.5}], **held))
    with pytest.raises(RecipeError, match="sparse is for memories of signs, which this model's is not"):
        make(
            recipe(
                tmp_path, stages=[{**STAGE, "keep": 0.0, "sparse": 1.0}], memory=papers, out=str(tmp_path / "sparse")
            )
        )
