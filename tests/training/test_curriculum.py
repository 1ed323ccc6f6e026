"""Stages follow each other, each from the best of the one before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.errors import ConfigError, RecipeError
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.training.checkpoint import load_weights
from recurrent_memory.training.curriculum import Curriculum, Stage, train_curriculum
from recurrent_memory.training.task_examples import TaskExamples
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from tiny_models import prose, tiny_backbone, tiny_tokenizer
from training.copy_task import CopyTask, S, arguments, copy_model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Watch(TrainerCallback):
    """The memory's first value and the texts' lengths at the start of each stage, and accuracies that are made up."""

    def __init__(self) -> None:
        self.starts: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.starts.append(kwargs["model"].memory.initial_memory.detach().clone())


def made_up(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float] | None = None) -> None:
    """Evaluations measure these, one after the other."""
    values = iter(zip(losses or [1.0] * len(accuracies), accuracies, strict=True))

    def evaluate(trainer: RecurrentMemoryTrainer, *_: Any, **__: Any) -> dict[str, float]:
        metrics = dict(zip(("eval_loss", "eval_accuracy"), next(values), strict=True))
        trainer.log(metrics)
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    monkeypatch.setattr(RecurrentMemoryTrainer, "evaluate", evaluate)


def run(out: Path, curriculum: Curriculum, **changes: Any) -> tuple[RecurrentMemoryModel, list[Any], Watch]:
    model, watch = copy_model(), Watch()
    resume = changes.pop("resume", False)
    results = train_curriculum(
        model, arguments(out, eval_steps=2, **changes), examples=CopyTask(), curriculum=curriculum, callbacks=[watch],
        num_eval_examples=4, resume=resume,
    )  # fmt: skip
    return model, results, watch


def memory_of(folder: str | Path) -> torch.Tensor:
    model = copy_model(seed=9)
    load_weights(model, folder)
    return model.memory.initial_memory.detach()


def test_a_stage_ends_at_its_target_and_the_next_begins_with_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stage 1 (limit 8) never gets there, its best is in the middle; stage 2 gets there at step 4.
    made_up(monkeypatch, [0.2, 0.6, 0.6, 0.3, 0.5, 0.9])
    curriculum = Curriculum((Stage(1, 8, 0.8), Stage(2, 8, 0.8)))
    model, results, watch = run(tmp_path, curriculum)
    first, second = results
    assert (first.num_steps, first.accuracy, Path(first.checkpoint).name) == (8, 0.6, "checkpoint-4")
    assert (second.num_steps, second.accuracy, Path(second.checkpoint).name) == (4, 0.9, "checkpoint-4")
    assert torch.equal(watch.starts[1], memory_of(first.checkpoint))
    assert not torch.equal(watch.starts[1], memory_of(tmp_path / "stage-1-segments-1/checkpoint-8"))
    assert torch.equal(model.memory.initial_memory, memory_of(second.checkpoint))
    record = json.loads((tmp_path / "curriculum.json").read_text())
    assert [row["num_segments"] for row in record] == [1, 2]
    for stage in ("stage-1-segments-1", "stage-2-segments-2"):
        assert (tmp_path / stage / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_may_be_measured_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    evaluate = RecurrentMemoryTrainer.evaluate

    def watched(trainer: RecurrentMemoryTrainer, *args: Any, **settings: Any) -> Any:
        seen.append((trainer.num_segments, trainer.state.global_step, trainer.num_eval_examples))
        return evaluate(trainer, *args, **settings)

    monkeypatch.setattr(RecurrentMemoryTrainer, "evaluate", watched)
    run(tmp_path, Curriculum((Stage(1, 4), Stage(2, 6, eval_every=3, num_eval_examples=7))))
    assert seen == [(1, 2, 4), (1, 4, 4), (2, 3, 7), (2, 6, 7)]


def test_a_stage_may_have_another_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = RecurrentMemoryTrainer.training_step

    def watched(trainer: RecurrentMemoryTrainer, model: Any, inputs: Any, *args: Any) -> Any:
        seen.append(len(inputs["input_ids"]))
        return step(trainer, model, inputs, *args)

    monkeypatch.setattr(RecurrentMemoryTrainer, "training_step", watched)
    run(tmp_path, Curriculum((Stage(1, 2), Stage(1, 3, batch_size=5), Stage(1, 1))))
    size = arguments(tmp_path, eval_steps=2).per_device_train_batch_size
    assert size != 5
    assert seen == [size] * 2 + [5] * 3 + [size]


def test_few_checkpoints_are_kept_and_the_best_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [0.7, 0.2, 0.3, 0.4])
    _, (result,), _ = run(tmp_path, Curriculum.of([2], max_steps=8), save_total_limit=1)
    assert Path(result.checkpoint).name == "checkpoint-2"
    kept = {path.name for path in (tmp_path / "stage-1-segments-2").glob("checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-8"}


def test_of_equally_accurate_ones_the_best_has_the_lowest_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [0.5, 1.0, 1.0, 1.0, 0.9], losses=[0.1, 0.7, 0.3, 0.4, 0.2])
    _, (result,), _ = run(tmp_path, Curriculum.of([2], max_steps=10))
    assert (Path(result.checkpoint).name, result.accuracy, result.loss) == ("checkpoint-6", 1.0, 0.3)


def test_the_best_may_be_the_one_with_the_lowest_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [0.2, 0.1, 0.9], losses=[1.5, 1.0, 1.2])
    model = copy_model()
    (result,) = train_curriculum(
        model, arguments(tmp_path, eval_steps=2), examples=CopyTask(), curriculum=Curriculum.of([2], max_steps=6),
        best_by="loss",
    )  # fmt: skip
    assert (Path(result.checkpoint).name, result.loss, result.accuracy) == ("checkpoint-4", 1.0, 0.1)
    assert torch.equal(model.memory.initial_memory, memory_of(result.checkpoint))


class Watched(CopyTask):
    """Keeps the numbers of segments that are asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def draw(self, rng: Any, num_segments: int) -> Any:
        self.seen.append(num_segments)
        return super().draw(rng, num_segments)


@pytest.mark.parametrize("random_num_segments", [True, False])
def test_the_number_of_segments_is_drawn_or_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_num_segments: bool
) -> None:
    made_up(monkeypatch, [0.1])
    examples = Watched()
    curriculum = Curriculum((Stage(3, 12),), random_num_segments=random_num_segments)
    train_curriculum(copy_model(), arguments(tmp_path, eval_steps=12), examples=examples, curriculum=curriculum)
    assert set(examples.seen) == ({1, 2, 3} if random_num_segments else {3})


def test_without_curriculum_all_texts_have_the_last_number_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curriculum = Curriculum.of([1, 2, 3], max_steps=2, target_accuracy=0.9)
    plain = Curriculum.of([1, 2, 3], max_steps=2, target_accuracy=0.9, curriculum=False)
    assert [stage.num_segments for stage in curriculum.planned()] == [1, 2, 3]
    assert plain.planned() == (Stage(3, 6, 0.9),)
    own = Stage(2, 4, 0.8, learning_rate=1e-4, eval_segments=8, candidates=3)
    assert Curriculum((Stage(1, 5), own), curriculum=False).planned() == (replace(own, max_steps=9),)
    seen: list[int] = []
    draw = CopyTask.draw

    def watched(task: CopyTask, rng: Any, num_segments: int) -> Any:
        seen.append(num_segments)
        return draw(task, rng, num_segments)

    monkeypatch.setattr(CopyTask, "draw", watched)
    made_up(monkeypatch, [0.1, 0.2, 0.3])
    run(tmp_path / "plain", plain)
    assert set(seen) == {3}
    seen.clear()
    made_up(monkeypatch, [0.1] * 12)
    run(tmp_path / "stages", Curriculum.of([1, 3], max_steps=12))
    assert set(seen[: 12 * 4]) == {1}
    assert set(seen[12 * 4 :]) == {1, 2, 3}


def test_no_two_stages_draw_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    draw = CopyTask.draw

    def watched(task: CopyTask, rng: Any, num_segments: int) -> Any:
        example = draw(task, rng, num_segments)
        seen.append(tuple(example["input_ids"]))
        return example

    monkeypatch.setattr(CopyTask, "draw", watched)
    made_up(monkeypatch, [0.1] * 4)
    run(tmp_path, Curriculum((Stage(2, 3), Stage(2, 3, candidates=2)), random_num_segments=False))
    assert len(seen) == len(set(seen)) == 3 * 4 + 3 * 4 * 2


def test_a_stage_is_trained_and_measured_on_its_own_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    draw = TaskExamples.draw

    def watched(made: TaskExamples, rng: Any, num_segments: int) -> Any:
        example = draw(made, rng, num_segments)
        lengths.append(example["text_length"])
        return example

    monkeypatch.setattr(TaskExamples, "draw", watched)
    made = TaskExamples((load_task("detect"),), [[prose(400)]], tiny_tokenizer(), 200, partial=0)
    config = MemoryConfig(num_memory_tokens=2, segment_length=200)
    model = RecurrentMemoryModel.from_backbone(tiny_backbone(positions=204), config)
    curriculum = Curriculum((Stage(1, 2, examples=replace(made, max_tokens=120)), Stage(1, 2)))
    train_curriculum(
        model, arguments(tmp_path, eval_steps=2), examples=made, curriculum=curriculum, num_eval_examples=4
    )
    count = len(lengths) // 2
    assert count > 4
    assert lengths == [120] * count + [200] * count


def test_a_stage_that_had_ended_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [0.9, 0.1])
    curriculum = Curriculum((Stage(1, 4, 0.8), Stage(2, 2)))
    model, results, _ = run(tmp_path, curriculum)
    (tmp_path / "curriculum.json").unlink()  # killed after the last checkpoint, before the record
    made_up(monkeypatch, [])
    again, same, watch = run(tmp_path, curriculum, resume=True)
    assert same == results
    assert watch.starts == []
    assert torch.equal(again.memory.initial_memory, model.memory.initial_memory)


def test_a_training_goes_on_where_its_folder_was_moved_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [0.9, 0.1, 0.2, 0.3])
    curriculum = Curriculum((Stage(1, 4), Stage(2, 4)))
    run(tmp_path / "before", Curriculum(curriculum.stages[:1]))
    (tmp_path / "before").rename(tmp_path / "after")
    _, results, watch = run(tmp_path / "after", curriculum, resume=True)
    assert torch.equal(watch.starts[0], memory_of(tmp_path / "after/stage-1-segments-1/checkpoint-2"))
    assert [Path(result.checkpoint).is_dir() for result in results] == [True, True]


def test_a_resumed_training_logs_what_a_whole_one_does(tmp_path: Path) -> None:
    """Also where a checkpoint falls between two rows of the log: the sums of a row are not in it."""

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    def log_of(out: Path, *callbacks: TrainerCallback, resume: bool = False) -> list[dict[str, Any]]:
        train_curriculum(
            copy_model(), arguments(out, eval_steps=5, logging_steps=2), examples=CopyTask(),
            curriculum=Curriculum((Stage(2, 10),)), num_eval_examples=4, callbacks=callbacks, resume=resume,
        )  # fmt: skip
        rows = json.loads((out / "stage-1-segments-2/checkpoint-10/trainer_state.json").read_text())["log_history"]
        return [{k: row[k] for k in ("step", "loss", "accuracy", "eval_loss") if k in row} for row in rows]

    whole = log_of(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        log_of(tmp_path / "stopped", Stop())
    assert log_of(tmp_path / "stopped", resume=True) == whole
    assert [row["step"] for row in whole if "loss" in row] == [2, 4, 5, 6, 8, 10]


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, [0.1] * 9)
    run(tmp_path, Curriculum.of([1], max_steps=2))
    with pytest.raises(RecipeError, match="a training is there already; go on with resume=True"):
        run(tmp_path, Curriculum.of([1], max_steps=2))
    with pytest.raises(RecipeError, match="of a curriculum with other stages"):
        run(tmp_path, Curriculum.of([2], max_steps=2), resume=True)
    (tmp_path / "curriculum.json").write_text("[{]")
    with pytest.raises(RecipeError, match="is not the record of a curriculum"):
        run(tmp_path, Curriculum.of([1], max_steps=2), resume=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curriculum(()), "stages is empty"),
        (lambda: Stage(0, 1), "num_segments=0 of a stage must be an int of at least 1"),
        (lambda: Stage(1, 0), "max_steps=0 of a stage"),
        (lambda: Stage(1, 1, 1.5), "target_accuracy=1.5 of a stage must be above 0 and at most 1"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.slow
def test_a_memory_is_learned(tmp_path: Path) -> None:
    curriculum = Curriculum.of([1, 2, 3], max_steps=600, target_accuracy=0.98)
    model = copy_model()
    results = train_curriculum(
        model,
        arguments(tmp_path, eval_steps=50, per_device_train_batch_size=16, logging_steps=50, save_total_limit=1),
        examples=CopyTask(), curriculum=curriculum, num_eval_examples=64,
    )  # fmt: skip
    assert [result.num_segments for result in results] == [1, 2, 3]
    # Chance is one half. The text of 3 segments is longer than the row of S + 2M positions that the backbone sees.
    assert min(result.accuracy for result in results if result.accuracy is not None) >= 0.98
    assert 3 * S == 12
