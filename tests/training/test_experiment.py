"""An experiment is checked before anything is loaded, and runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.errors import ConfigError, OutputError, RecipeError
from recurrent_memory.locking import alone_in
from recurrent_memory.models import load_model
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.training import experiment as module
from recurrent_memory.training.beginning import begin_with_model
from recurrent_memory.training.curriculum import Stage
from recurrent_memory.training.experiment import begin, load_experiment, run_experiment
from recurrent_memory.training.experiment_examples import with_own_tasks
from recurrent_memory.training.task_examples import TaskExamples
from tiny_models import prose, save_tiny_model, tiny_tokenizer
from training.copy_task import AnyLengthTask, S, copy_model

VALUES: dict[str, Any] = {
    "name": "copy",
    "expected": "nothing; it only has to run",
    "time": "a second",
    "cost": "nothing",
    "backbone": "folder",
    "memory": {"num_memory_tokens": 2, "segment_length": S},
    "trained": "lora",
    "lora": {"r": 2, "alpha": 4, "target_modules": ["query_key_value"]},
    "stages": [1, {"num_segments": 2, "max_steps": 3}],
    "max_steps": 2,
    "target_accuracy": 0.99,
    "backpropagation": {"kind": "truncated", "window": 2},
    "batch": {"size": 2, "parts": 2},
    "num_eval_examples": 4,
    "out": "model",
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **changes}))
    return path


def test_an_experiment_runs_and_its_model_loads(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    copy_model().backbone.save_pretrained(tmp_path / "backbone")
    path = written(tmp_path, backbone=str(tmp_path / "backbone"), out=str(tmp_path / "model"))
    experiment = load_experiment(path)
    assert experiment.plan().planned() == (Stage(1, 2, 0.99), Stage(2, 3, 0.99))
    model, results = run_experiment(
        experiment, AnyLengthTask(), use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, report_to="none"
    )
    assert [result.num_segments for result in results] == [1, 2]
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "model")
    ids = torch.arange(2 * S)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert list(loaded.config.peft) == ["lora"]


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    copy_model().backbone.save_pretrained(tmp_path / "backbone")
    experiment = load_experiment(written(tmp_path, backbone=str(tmp_path / "backbone"), out=str(tmp_path / "model")))
    with (
        alone_in(tmp_path / "model.run"),
        pytest.raises(OutputError, match=r"model\.run: another process is writing there"),
    ):
        run_experiment(experiment, AnyLengthTask(), use_cpu=True, dataloader_pin_memory=False, report_to="none")
    assert not list((tmp_path / "model.run").iterdir())


def test_a_stage_has_the_target_of_the_experiment_its_own_or_none(tmp_path: Path) -> None:
    stages = [1, {"num_segments": 2, "target_accuracy": 0.5}, {"num_segments": 3, "target_accuracy": None}]
    planned = load_experiment(written(tmp_path, stages=stages)).plan().planned()
    assert [stage.target_accuracy for stage in planned] == [0.99, 0.5, None]


def test_a_stage_may_have_the_task_in_another_way(tmp_path: Path) -> None:
    task = {"name": "reason", "options": {"converse": True}, "partial": 0.5}
    easy = {"options": {"converse": False}, "max_tokens": 80, "question_apart": False}
    experiment = load_experiment(
        written(tmp_path, task=task, stages=[{"num_segments": 1, "task": easy}, 2, {"num_segments": 2, "task": {}}])
    )
    made = TaskExamples((load_task("reason"),), [[prose(100)]], tiny_tokenizer(), 16 * S, partial=0.5)
    first, *others = with_own_tasks(experiment.plan(), experiment, made).stages
    assert first.examples == replace(
        made, tasks=(load_task("reason", converse=False),), max_tokens=80, question_apart=False
    )
    assert [stage.examples for stage in others] == [None, None]


def test_options_may_be_of_one_task_of_several(tmp_path: Path) -> None:
    """A task that is named twice is drawn twice as often."""
    task = {"name": ["reason", "reason", "detect"], "options": {"reason": {"converse": False}}}
    recipe = load_experiment(written(tmp_path, task=task, stages=[1])).task
    assert recipe is not None
    one_sided = load_task("reason", converse=False)
    assert recipe.settings()["tasks"] == (one_sided, one_sided, load_task("detect"))
    shared = recipe.changed({"name": "reason", "options": {"converse": False, "reason": {"converse": True}}})
    assert shared.settings()["tasks"] == (load_task("reason", converse=True),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": {"name": "detect", "options": {"reason": {"converse": False}}}, "stages": [1]},
            "options: reason: .* must be options, NAME: VALUE, of a task that is learned; that is detect",
        ),
        (
            {"task": {"name": "reason", "options": {"reason": False}}, "stages": [1]},
            "options: reason: False must be options",
        ),
        (
            {"stages": [{"num_segments": 1, "task": {"partial": 0.1}}]},
            "a stage has a task of its own, the experiment none",
        ),
        (
            {"task": {"name": "detect"}, "stages": [{"num_segments": 1, "task": {"noise": ["x"]}}]},
            "'noise' of the task of a",
        ),
        (
            {"task": {"name": "detect"}, "stages": [{"num_segments": 1, "task": {"colour": 1}}]},
            "'colour' of the task of a",
        ),
        (
            {"task": {"name": "detect", "question_apart": False}, "stages": [{"num_segments": 1, "carried": {}}]},
            "question_apart=False, unanswerable=0.0: carried lanes have texts without end",
        ),
        (
            {"task": {"name": "detect", "unanswerable": 0.1}, "stages": [{"num_segments": 1, "carried": {}}]},
            "unanswerable=0.1: carried lanes have texts without end",
        ),
        (
            {"task": {"name": "reason", "questions": 2}, "stages": [{"num_segments": 1, "candidates": 3}]},
            "candidates=3, questions=2: the hardest of several texts",
        ),
        (
            {"task": {"name": "detect"}, "stages": [{"num_segments": 1, "task": {"unanswerable": 1}}]},
            "of a stage: unanswerable: Input",
        ),
        (
            {"task": {"name": "detect"}, "stages": [{"num_segments": 1, "task": {"partial": 3}}]},
            "of a stage: partial: Input",
        ),
    ],
)
def test_a_task_of_a_stage_that_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_experiment(written(tmp_path, **changes))


def test_a_classifier_has_the_same_answers_in_every_stage(tmp_path: Path) -> None:
    stages = [{"num_segments": 1, "task": {"name": "qa5"}}]
    experiment = load_experiment(written(tmp_path, task={"name": "detect"}, stages=stages))
    made = TaskExamples((load_task("detect"),), [[prose(100)]], tiny_tokenizer(), 16 * S, "class")
    with pytest.raises(RecipeError, match=r"stages\.0\.task: its answers .* are not those of the task"):
        with_own_tasks(experiment.plan(), experiment, made)


def test_a_memory_and_its_adapter_are_written_without_the_backbone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    copy_model().backbone.save_pretrained(tmp_path / "backbone")
    changes = {"backbone": str(tmp_path / "backbone"), "out": str(tmp_path / "model"), "save_backbone": False}
    model, _ = run_experiment(
        load_experiment(written(tmp_path, **changes)),
        AnyLengthTask(),
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert RecurrentMemoryModel.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint
    with pytest.raises(RecipeError, match="save_backbone: false leaves out what is not trained, and trained is all"):
        load_experiment(written(tmp_path, **{**changes, "trained": "all", "lora": None}))
    for source in ({"backbone": "shipped"}, {"backbone": None, "model": "shipped", "memory": {}}):
        with pytest.raises(RecipeError, match="save_backbone: false leaves out what can be loaded from a backbone"):
            load_experiment(written(tmp_path, **{**changes, **source}))


def test_checkpoints_are_without_the_backbone_too_and_training_goes_on_from_them(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    copy_model().backbone.save_pretrained(tmp_path / "backbone")

    def run(*, lean: bool, resume: bool = False) -> RecurrentMemoryModel:
        changes = {"backbone": str(tmp_path / "backbone"), "out": str(tmp_path / f"{lean}"), "save_backbone": not lean}
        experiment = load_experiment(written(tmp_path, **changes, eval_every=1))
        settings: dict[str, Any] = {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True}
        return run_experiment(experiment, AnyLengthTask(), **settings, report_to="none", resume=resume)[0]

    model = run(lean=True)
    record = tmp_path / "True.run" / "curriculum.json"
    stages = json.loads(record.read_text())
    last = tmp_path / "True.run" / "stage-2-segments-2" / "checkpoint-3"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert load_file(last / "model.safetensors").keys() == trained
    best = RecurrentMemoryModel.from_pretrained(stages[-1]["checkpoint"])
    assert best.fingerprint == model.fingerprint
    assert run(lean=False).fingerprint == model.fingerprint
    record.write_text(json.dumps(stages[:1]))
    weights = load_file(last / "model.safetensors")
    shutil.rmtree(last)  # as if it had been killed after the second step
    assert run(lean=True, resume=True).fingerprint == model.fingerprint
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_a_model_is_trained_further(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    save_tiny_model(tmp_path / "first", seed=3)
    before = RecurrentMemoryModel.from_pretrained(tmp_path / "first")
    (tmp_path / "noise.txt").write_text(prose(200))
    task = {"name": "detect", "noise": str(tmp_path / "noise.txt")}
    changes = {"backbone": None, "memory": {}, "lora": None, "trained": "memory", "task": task, "stages": [1]}
    path = written(
        tmp_path, model=str(tmp_path / "first"), target_accuracy=None, out=str(tmp_path / "second"), **changes
    )
    settings = {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True, "report_to": "none"}
    after, _ = run_experiment(load_experiment(path), **settings)
    assert after.memory_config == before.memory_config
    weights = before.state_dict()
    changed = {name for name, weight in after.state_dict().items() if not torch.equal(weight, weights[name])}
    assert changed == {"memory.initial_memory"}
    assert AutoTokenizer.from_pretrained(tmp_path / "second").vocab_size


@pytest.mark.parametrize("kind", ["tokens", "associative"])
def test_the_backbone_in_the_package_is_given_another_memory(tmp_path: Path, kind: str) -> None:
    memory = {"kind": kind, "num_memory_tokens": 3, "segment_length": S}
    beginning = begin(load_experiment(written(tmp_path, backbone="shipped", memory=memory)))
    model, (shipped, _) = beginning.build((), None), load_model()
    assert (beginning.family, beginning.classifies, beginning.segment_length) == ("decoder", False, S)
    assert (model.memory_config.kind, model.memory_config.num_memory_tokens) == (kind, 3)
    weights = model.backbone.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in shipped.backbone.state_dict().items())
    assert beginning.tokenizer().decode(beginning.tokenizer()("417: 83.")["input_ids"]) == "417: 83."


def test_what_is_under_a_memory_is_given_another_one(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "first", seed=3)
    first = RecurrentMemoryModel.from_pretrained(tmp_path / "first")
    first.add_peft_adapter(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False))
    first.save_pretrained(tmp_path / "first")
    first.merge_adapters()
    memory = {"kind": "associative", "num_memory_tokens": 3, "segment_length": S}
    changes = {"backbone": str(tmp_path / "first"), "memory": memory}
    beginning = begin(load_experiment(written(tmp_path, **changes)))
    model = beginning.build((), None)
    assert model.memory_config.kind == "associative"
    weights = model.backbone.state_dict()
    assert weights.keys() == first.backbone.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in first.backbone.state_dict().items())
    assert beginning.tokenizer().vocab_size
    with pytest.raises(ConfigError, match=r"first is under a memory; leave save_backbone out"):
        begin(load_experiment(written(tmp_path, **changes, save_backbone=False)))


def test_the_backbone_in_the_package_is_not_loaded_in_4_bits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora.bits: the backbone in the package is far too small"):
        begin(load_experiment(written(tmp_path, backbone="shipped", trained="lora", lora={"bits": 4})))


def test_a_classifier_keeps_its_classes(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    config.update({"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}})
    backbone = BertForSequenceClassification(config)
    memory = MemoryConfig(num_memory_tokens=2, segment_length=S)
    made = RecurrentMemoryModel.from_backbone(
        backbone, memory, task="sequence-classification", cls_token_id=0, sep_token_id=1
    )
    made.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    beginning = begin_with_model(str(tmp_path), seed=0)
    assert (beginning.family, beginning.classifies, beginning.segment_length) == ("encoder", True, S)
    assert beginning.build(("yes", "no"), None).config.family == "encoder"
    with pytest.raises(ConfigError, match="names the classes yes, no, the tasks have kitchen, garden"):
        beginning.build(("kitchen", "garden"), None)


def test_the_trainer_gets_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (True, False):
        monkeypatch.setattr(module, "is_tensorboard_available", lambda installed=installed: installed)
        args = load_experiment(written(tmp_path, optimizer={"learning_rate": 3e-4})).arguments(use_cpu=True)
        assert args.report_to == (["tensorboard"] if installed else [])
    assert (args.learning_rate, args.max_grad_norm, args.get_warmup_steps(50)) == (3e-4, 1.0, 5)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 2)
    assert (args.lr_scheduler_type, args.optim) == ("linear", "adamw_torch_fused")


def test_a_number_of_stages_is_one_more_segment_in_each(tmp_path: Path) -> None:
    assert [stage.num_segments for stage in load_experiment(written(tmp_path, stages=4)).plan().planned()] == [
        1,
        2,
        3,
        4,
    ]
    for value in (0, True):
        with pytest.raises(RecipeError, match="stages"):
            load_experiment(written(tmp_path, stages=value))


def test_losses_go_to_the_trackers_that_are_named(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    torch.set_num_threads(1)
    copy_model().backbone.save_pretrained(tmp_path / "backbone")
    path = written(
        tmp_path,
        backbone=str(tmp_path / "backbone"),
        out=str(tmp_path / "model"),
        stages=[1],
        report_to=["tensorboard"],
    )
    run_experiment(load_experiment(path), AnyLengthTask(), use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True)
    (events,) = (tmp_path / "model.run").rglob("events.out.tfevents.*")
    logged = EventAccumulator(str(events.parent)).Reload()
    assert {"train/loss", "train/accuracy", "eval/loss", "eval/accuracy"} <= set(logged.Tags()["scalars"])
    assert [event.step for event in logged.Scalars("train/loss")] == [2]
    assert load_experiment(written(tmp_path, report_to=[])).arguments(use_cpu=True).report_to == []


def test_trackers_that_cannot_be_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="report_to: 'wandbb' is no tracker of the Trainer; choose from azure_ml, "):
        load_experiment(written(tmp_path, report_to=["wandbb"]))
    monkeypatch.setattr(module, "get_available_reporting_integrations", list)
    with pytest.raises(
        RecipeError, match="report_to: the package of wandb is not installed; install it, or leave wandb"
    ):
        load_experiment(written(tmp_path, report_to=["wandb"]))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without an accelerator")
def test_bf16_needs_no_accelerator(tmp_path: Path) -> None:
    args = load_experiment(written(tmp_path, precision="bf16")).arguments()
    assert (args.bf16, args.device.type) == (True, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained": "head"}, "trained: Input should be 'memory', 'lora' or 'all'"),
        ({"trained": "all"}, "lora is given, but trained is all"),
        ({"lora": {"bits": 8}}, "lora.bits: Input should be 4"),
        ({"memory": {"segment_length": 0}}, "memory: .*segment_length=0 must be at least 1"),
        ({"backpropagation": {"kind": "truncated"}}, "backpropagation: .*window=None must be an int"),
        ({"stages": []}, "stages: .*at least 1 item"),
        ({"stages": [0]}, "stages.0.num_segments: Input should be greater than or equal to 1"),
        ({"optimizer": {"warmup": 100}}, "optimizer.warmup: Input should be less than 1"),
        ({"model": "shipped"}, "either a backbone, to give a memory to, or a model, to train further"),
        ({"backbone": None}, "either a backbone, to give a memory to, or a model, to train further"),
        ({"backbone": None, "model": "shipped"}, "leave memory, backbone_task and num_labels out"),
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match="(?s)" + message):
        load_experiment(written(tmp_path, **changes))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(RecipeError, match="an experiment is a mapping"):
        load_experiment(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_experiment(tmp_path / "bad.yaml")
