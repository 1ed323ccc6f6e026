"""Training with the Trainer: the same however it is shared out or interrupted, and nothing is unpickled."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.errors import ConfigError, OutputError, RecipeError
from recurrent_memory.training import checkpoint, unroll
from recurrent_memory.training import trainer as trainer_module
from recurrent_memory.training.bptt import Backpropagation, backpropagate, measure
from recurrent_memory.training.checkpoint import load_values, save_values
from recurrent_memory.training.examples import collate, held_out
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from training.copy_task import AnyLengthTask, CopyTask, arguments, copy_model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trainer_of(out: Path, model: RecurrentMemoryModel | None = None, **changes: Any) -> RecurrentMemoryTrainer:
    settings: dict[str, Any] = {"examples": AnyLengthTask(), "num_segments": 3, "num_eval_examples": 8}
    settings |= {name: changes.pop(name) for name in list(changes) if not hasattr(arguments(out), name)}
    return RecurrentMemoryTrainer(model or copy_model(), arguments(out, **changes), **settings)


def losses(trainer: RecurrentMemoryTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_full_disk(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        if "checkpoint-4" not in str(path):
            return save_file(tensors, path, **options)
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", on_a_full_disk)
    trainer = trainer_of(tmp_path / "run", max_steps=4, save_steps=2, save_strategy="steps")
    with pytest.raises(OutputError, match="checkpoint-4.* no space is left on the disk"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-2"]
    monkeypatch.undo()
    again = trainer_of(tmp_path / "run", max_steps=4, save_steps=2, save_strategy="steps")
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert again.state.global_step == 4


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("method", [Backpropagation(), Backpropagation("truncated", 1), Backpropagation("recompute")],
                         ids=lambda m: m.kind)  # fmt: skip
def test_four_parts_are_one_batch(tmp_path: Path, method: Backpropagation, candidates: int) -> None:
    model = copy_model().double()
    results: list[tuple[list[float], dict[str, torch.Tensor]]] = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path / str(parts), copy.deepcopy(model), per_device_train_batch_size=size,
            gradient_accumulation_steps=parts, backpropagation=method, candidates=candidates, save_strategy="no",
        )  # fmt: skip
        trainer.train()
        results.append((losses(trainer), trainer.model.state_dict()))
    (whole, weights), (parts, other_weights) = results
    assert parts == pytest.approx(whole, rel=1e-6)  # what the Trainer sums up and logs is float32
    for name, weight in weights.items():
        # float64 sums in another order, of which Adam divides small ones by small ones.
        torch.testing.assert_close(other_weights[name], weight, rtol=0, atol=1e-8, msg=name)
    assert not torch.equal(weights["memory.initial_memory"], model.state_dict()["memory.initial_memory"])


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: int) -> None:
    model = copy_model(dropout=0.1)
    settings: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "gradient_accumulation_steps": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 2, "candidates": candidates}
    whole = trainer_of(tmp_path / "whole", copy.deepcopy(model), **settings)
    whole.train()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was unpickled")

    for module in (torch, pickle):
        monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    other = trainer_of(tmp_path / "whole", copy_model(seed=5, dropout=0.1), **settings)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(123)
    other.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert losses(other) == losses(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], weight), name
    kept = ("loss", "accuracy", "eval_loss", "eval_accuracy", "learning_rate", "grad_norm")
    for row, expected in zip(other.state.log_history[:-1], whole.state.log_history[:-1], strict=True):
        assert {k: row.get(k) for k in kept} == {k: expected.get(k) for k in kept}
    assert len(set(losses(whole))) == 6


def test_of_candidates_the_one_with_the_largest_loss_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, copy_model(dropout=0.1).double(), candidates=5, max_steps=3, save_strategy="no")
    read = list[dict[str, Any]]()
    steps = list[dict[str, torch.Tensor]]()

    def spy(model: RecurrentMemoryModel, **inputs: Any) -> Any:
        read.append(inputs)
        steps.append(copy.deepcopy(model.state_dict()))
        return backpropagate(model, **inputs)

    monkeypatch.setattr(trainer_module, "backpropagate", spy)
    trainer.train()
    for step, (inputs, weights) in enumerate(zip(read, steps, strict=True)):
        model = copy_model().double()
        model.load_state_dict(weights)
        for place in range(4):
            drawn = trainer.train_dataset[4 * step + place]
            losses = [
                float(measure(model.eval(), **collate([example]), num_items_in_batch=1).loss) for example in drawn
            ]
            chosen = drawn[losses.index(max(losses))]["input_ids"]
            assert inputs["input_ids"][place, : len(chosen)].tolist() == chosen
            assert int(inputs["attention_mask"][place].sum()) == len(chosen)
        assert inputs["num_items_in_batch"] == int((inputs["labels"][:, 1:] != -100).sum())


class _SometimesUnanswerable:
    """A text with its last token apart, every other time, at random, without an answer."""

    def draw(self, rng: random.Random, num_segments: int) -> Any:
        example = AnyLengthTask().draw(rng, num_segments)
        asked = {**example, "text_length": len(example["input_ids"]) - 1}
        return {**asked, "unanswerable": True} if rng.random() < 0.5 else asked


@pytest.mark.parametrize("candidates", [1, 3])
def test_accuracy_is_that_of_answerable_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    counted = list[tuple[int, int, int]]()

    def spy(model: RecurrentMemoryModel, **inputs: Any) -> Any:
        outcome = backpropagate(model, **inputs)
        drawn = [trainer.train_dataset[4 * trainer.state.global_step + place][0] for place in range(4)]
        answerable = torch.tensor([not example.get("unanswerable", False) for example in drawn])
        answerable &= (inputs["labels"] != -100).any(1)
        counted.append((int((answerable & (outcome.num_wrong == 0)).sum()), int(answerable.sum()), len(answerable)))
        return outcome

    monkeypatch.setattr(trainer_module, "backpropagate", spy)
    trainer = trainer_of(
        tmp_path,
        examples=_SometimesUnanswerable(),
        candidates=candidates,
        max_steps=8,
        logging_steps=1,
        save_strategy="no",
    )
    trainer.train()
    logged = [row["accuracy"] for row in trainer.state.log_history if "loss" in row]
    assert logged == [right / max(answerable, 1) for right, answerable, _ in counted]
    assert 0 < sum(answerable for _, answerable, _ in counted) < sum(drawn for _, _, drawn in counted)


def test_a_checkpoint_is_safetensors_and_json_and_loads(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".png"}
    assert (tmp_path / "checkpoint-4/random-0.safetensors").is_file()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "checkpoint-4")
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    values = type(trainer)._training_values

    def interrupted(trainer: RecurrentMemoryTrainer) -> dict[str, Any]:
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt
        return values(trainer)

    monkeypatch.setattr(type(trainer), "_training_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    # As a kill would leave it.
    (tmp_path / ".checkpoint-4.tmp").mkdir()
    (tmp_path / ".checkpoint-4.tmp/model.safetensors").write_bytes(b"half")
    again = trainer_of(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "curves.png"]


class Break(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                kwargs["model"].memory.initial_memory.fill_(float("nan"))


@pytest.mark.parametrize(("changes", "advice"), [
    ({}, "the last good checkpoint is .*checkpoint-2: lower the learning rate"),
    ({"save_strategy": "no"}, "there is no checkpoint yet: lower"),
])  # fmt: skip
def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(
    tmp_path: Path, changes: dict[str, Any], advice: str
) -> None:
    trainer = trainer_of(tmp_path, callbacks=[Break()], **changes)
    with pytest.raises(RecipeError, match=rf"the loss became nan at step 4; {advice}"):
        trainer.train()


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.model.memory.initial_memory.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(RecipeError, match=r"the gradient's norm became (nan|inf) at step 1"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


def test_half_precision_is_used_and_weights_stay_whole(tmp_path: Path) -> None:
    model = copy_model()
    runs = {}
    for flag in (False, True):
        trainer = trainer_of(tmp_path / str(flag), copy.deepcopy(model), bf16=flag, save_strategy="no", max_steps=2)
        trainer.train()
        runs[flag] = losses(trainer)
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert runs[True] != runs[False]
    assert runs[True] == pytest.approx(runs[False], rel=0.05)  # bfloat16 has 8 bits


def test_of_questions_accuracy_is_the_share_of_answers_that_are_right_as_a_whole(tmp_path: Path) -> None:
    class Asked(AnyLengthTask):
        def draw(self, rng: random.Random, num_segments: int) -> Any:
            return {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5], "text_length": 1}

    def predicted(right: list[list[bool]]) -> None:
        flags = iter(right)

        def head_losses(view: Any, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(len(targets)), torch.tensor(next(flags))

        patch.setattr(unroll, "head_losses", head_losses)

    trainer = trainer_of(tmp_path, examples=Asked(), num_segments=1, per_device_eval_batch_size=2, num_eval_examples=4)
    with pytest.MonkeyPatch.context() as patch:
        predicted([[True, True, True, True, True, False], [False, False, False, True, True, True]])
        metrics = trainer.evaluate()
    assert (metrics["eval_loss"], metrics["eval_accuracy"]) == (1.0, 0.5)


def test_accuracy_is_that_of_the_logits(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, per_device_eval_batch_size=3, num_eval_examples=7)
    metrics = trainer.evaluate()
    batch = collate([held_out(AnyLengthTask(), trainer.args.seed, 3, index) for index in range(7)])
    output = trainer.model(**batch)
    target = batch["labels"][:, 1:]
    right = (output.logits[:, :-1].argmax(-1) == target).sum() / (target != -100).sum()
    assert metrics["eval_accuracy"] == pytest.approx(float(right))
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-5)


def test_training_stops_at_its_target_with_a_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, examples=CopyTask(), num_segments=1, target_accuracy=0.9, num_eval_examples=32, max_steps=400,
        save_steps=400, eval_strategy="steps", eval_steps=20, per_device_train_batch_size=16,
    )  # fmt: skip
    trainer.train()
    assert 20 <= trainer.state.global_step < 400
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "max_steps=-1 must be at least 1"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not supported here; leave it at 0.0"),
        ({"ignore_data_skip": True}, "ignore_data_skip=True is not supported here; leave it at False"),
        ({"num_segments": 0}, "num_segments=0 must be at least 1"),
        ({"num_eval_examples": 0}, "num_eval_examples=0 must be at least 1"),
        ({"target_accuracy": 99}, "target_accuracy=99 must be above 0 and at most 1"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(tmp_path, **changes)


def test_values_come_back_from_a_file(tmp_path: Path) -> None:
    values = {"a": {0: torch.arange(3), "x": [1, 2.5, None, True, "s"]}, "b": torch.tensor(0.1, dtype=torch.float64)}
    save_values(values, tmp_path / "values.safetensors")
    back = load_values(tmp_path / "values.safetensors")
    assert torch.equal(back["a"][0], values["a"][0])
    assert back["a"]["x"] == values["a"]["x"]
    assert torch.equal(back["b"], values["b"])
    with pytest.raises(TypeError, match="c: a set cannot be kept"):
        save_values({"c": {1}}, tmp_path / "other.safetensors")


def test_a_file_that_is_not_ours_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    torch.save({"x": 1}, tmp_path / "pickle.safetensors")
    for name, message in (("foreign", "is not a checkpoint"), ("pickle", "cannot be read"), ("none", "cannot be read")):
        with pytest.raises(RecipeError, match=rf"{name}.safetensors: {message}.*resume from an older checkpoint"):
            load_values(tmp_path / f"{name}.safetensors")


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path).train()
    (tmp_path / "checkpoint-2/random-0.safetensors").rename(tmp_path / "checkpoint-2/random-1.safetensors")
    with pytest.raises(RecipeError, match="goes on with as many processes as it was begun with"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path).train()
    weights = load_file(tmp_path / "checkpoint-2/model.safetensors")
    assert "memory.initial_memory" in weights
    other = copy_model()
    other.memory.initial_memory = torch.nn.Parameter(torch.zeros(3, 16))
    with pytest.raises(RecipeError, match="is a checkpoint of another model"):
        trainer_of(tmp_path, other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
