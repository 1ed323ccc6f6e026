"""`rmt train` of an experiment, from a recipe to a model that is evaluated and asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.tasks.whereabouts import PLACES
from tiny_models import CORPUS, prose, tiny_backbone, tiny_tokenizer

SEGMENT = 24


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("recurrent_memory.training.experiment.is_tensorboard_available", lambda: False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
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
        "stages": [1, 2],
        "max_steps": 3,
        "eval_every": 2,
        "batch": {"size": 2},
        "num_eval_examples": 2,
        "optimizer": {"learning_rate": 1e-3},
        "out": str(tmp_path / "model"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def bert(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator([CORPUS, prose(50)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    BertModel(config).save_pretrained(folder)


def test_a_decoder_from_recipe_to_answer(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    assert rmt("train", recipe, "--check", "--json").json == {"recipe": str(recipe), "valid": True, "stages": 2}
    trained = rmt("train", recipe, "batch.parts=2", "--json")
    values = trained.json
    assert [(row["num_segments"], row["num_steps"]) for row in values["stages"]] == [(1, 3), (2, 3)]
    assert "stage 2/2  up to 2 segments  step 3" in trained.err
    assert (tmp_path / "model.run" / "stage-1-segments-1" / "curves.png").is_file()
    out = tmp_path / "eval"
    lines = rmt("eval", tmp_path / "model", "--noise", tmp_path / "noise.txt", "--segments", "2,4", "--samples", "2",
                "--out", out, "--json").json["lines"]  # fmt: skip
    assert [line["length"] for line in lines if line["by"] == "length"] == [2 * SEGMENT, 4 * SEGMENT]


def test_a_classifier_answers_in_words(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    command = [
        "train", recipe, f"backbone={tmp_path / 'bert'}", "backbone_task=sequence-classification", "trained=memory",
        "stages=[1]", "task.name=memorize",
    ]  # fmt: skip
    assert rmt(*command).status == 0
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "model")
    assert loaded.backbone.config.id2label == dict(enumerate(PLACES))
    state = tmp_path / "state.safetensors"
    assert rmt("read", tmp_path / "noise.txt", "--model", tmp_path / "model", "--out", state).status == 0
    assert rmt("ask", state, "Where is Mary?", "--json").json["answer"] in PLACES
    rmt("eval", tmp_path / "model", "--task", "memorize", "--noise", tmp_path / "noise.txt", "--lengths", "60",
        "--samples", "3", "--out", tmp_path / "eval")  # fmt: skip
    rows = json.loads((tmp_path / "eval" / "rows" / "60-0.json").read_text())
    assert {row["answer"] for row in rows} <= set(PLACES)


def test_of_several_tasks_each_has_its_held_out_accuracy(rmt: Any, recipe: Path, tmp_path: Path) -> None:
    changes = ("task.name=[detect, memorize]", "num_eval_examples=9", "eval_every=3", "stages=[2]")
    shown = rmt("train", recipe, *changes, "--threads", "1")
    assert shown.status == 0
    (state,) = (tmp_path / "model.run").glob("stage-1*/checkpoint-3/trainer_state.json")
    (row,) = (row for row in json.loads(state.read_text())["log_history"] if "eval_accuracy" in row)
    detect, memorize = row["eval_accuracy_detect"], row["eval_accuracy_memorize"]
    assert f"held-out accuracy {row['eval_accuracy']:.3f} (detect {detect:.3f}, memorize {memorize:.3f})" in shown.err


def test_going_on_and_beginning_anew(rmt: Any, recipe: Path) -> None:
    assert rmt("train", recipe).status == 0
    assert "a training is there already; go on with" in rmt("train", recipe).error
    assert rmt("train", recipe, "--resume").status == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.name=sing", "task: 'sing' is not a task; there are detect, memorize"),
        ("task.noise=missing", "noise missing: no such path"),
        ("task.options={colour: red}", "does not take the options ['colour']"),
        ("task.partial=2", "task.partial: Input should be less than or equal to 1"),
        ("task=", "task: is missing; say what is learned, such as task: {name: detect, noise: [FOLDER]}"),
        ("backbone=nowhere/to/be/found", "nowhere/to/be/found"),
        ("memory.segment_length=200", "segment_length=200"),
        ("stages=[]", "stages"),
        ("fsdp=true", "fsdp splits layers over processes; start several: torchrun --nproc-per-node 2"),
        ("nonsense", "'nonsense' is not key=value"),
        ("max_segments=5", "max_segments: Extra inputs are not permitted"),
    ],
)
def test_bad_recipes(rmt: Any, recipe: Path, tmp_path: Path, change: str, message: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert message in rmt("train", recipe, change).error
    assert not (tmp_path / "model").exists()


def test_a_recipe_may_train_a_model_further(rmt: Any, tmp_path: Path) -> None:
    described = {"name": "further", "expected": "-", "time": "-", "cost": "-"}
    stage = {"num_segments": 1, "segment_length": 16, "lanes": 2, "learning_rate": 1e-3, "max_steps": 1}
    path = tmp_path / "further.yaml"
    stages = [{**stage, "lifetime": 1, "facts": [0.5, 2]}]
    path.write_text(yaml.safe_dump({**described, "model": "shipped", "stages": stages, "out": str(tmp_path / "model")}))
    assert rmt("train", path, "--check", "--json").json == {"recipe": str(path), "valid": True, "stages": 1}


def test_a_file_that_is_no_recipe(rmt: Any, tmp_path: Path) -> None:
    assert "cannot be read" in rmt("train", tmp_path / "missing.yaml").error
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    assert "a recipe is a mapping of settings, this is a list" in rmt("train", tmp_path / "list.yaml").error
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not YAML" in rmt("train", tmp_path / "bad.yaml").error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda:7"), "--device cuda:7"),
        (("--device", "abacus"), "--device abacus: is not available here"),
        (("--dtype", "float64"), "--dtype float64: is not one of auto, float32, bfloat16, float16"),
    ],
)
def test_impossible_devices_and_dtypes(rmt: Any, recipe: Path, options: tuple[str, str], message: str) -> None:
    assert message in rmt("train", recipe, *options).error


def test_dtype_is_the_precision_of_the_training(rmt: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(experiment: Any, **settings: Any) -> tuple[None, list[Any]]:
        seen.update(settings, precision=experiment.precision)
        return None, []

    monkeypatch.setattr("recurrent_memory.training.experiment.run_experiment", run)
    assert rmt("train", recipe, "--device", "cpu", "--dtype", "bfloat16").status == 0
    assert (seen["use_cpu"], seen["precision"]) == (True, "bf16")


def test_a_model_that_is_made_is_made_in_float32_on_the_cpu(rmt: Any) -> None:
    small = Path(__file__).parents[2] / "recipes" / "small.yaml"
    assert "makes a model on the CPU in float32" in rmt("train", small, "--check", "--dtype", "bfloat16").error
