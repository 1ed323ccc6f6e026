"""Language modelling: stopped and gone on with, the memory's own learning rate, fine-tuning without memory."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.errors import ConfigError
from recurrent_memory.training.bptt import Backpropagation
from recurrent_memory.training.examples import held_out
from recurrent_memory.training.text_examples import TextExamples
from recurrent_memory.training.trained import LoraSettings, choose_trained
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from training.copy_task import VOCAB, S, arguments, copy_model

LORA = LoraSettings(r=2, alpha=4, target_modules=("query_key_value",))
KINDS = [Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 1)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def text(seed: int, num_documents: int = 3) -> TextExamples:
    rng = random.Random(seed)
    return TextExamples([np.asarray(rng.choices(range(VOCAB), k=40)) for _ in range(num_documents)], S)


def trainer_of(out: Path, model: RecurrentMemoryModel, **changes: Any) -> RecurrentMemoryTrainer:
    settings: dict[str, Any] = {
        "examples": text(0),
        "eval_examples": text(1),
        "num_segments": 3,
        "num_eval_examples": 4,
    }
    settings |= {name: changes.pop(name) for name in list(changes) if not hasattr(arguments(out), name)}
    return RecurrentMemoryTrainer(model, arguments(out, **changes), **settings)


def without_memory() -> RecurrentMemoryModel:
    return RecurrentMemoryModel.from_backbone(
        copy_model().backbone, MemoryConfig(num_memory_tokens=0, segment_length=S)
    )


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = copy_model(dropout=0.1)
    settings: dict[str, Any] = {
        "max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "memory_learning_rate": 0.05,
    }  # fmt: skip
    whole = trainer_of(tmp_path, copy.deepcopy(model), **settings)
    whole.train()
    other = trainer_of(tmp_path, copy_model(seed=5, dropout=0.1), **settings)
    torch.manual_seed(123)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], weight), name
    for row, expected in zip(other.state.log_history[:-1], whole.state.log_history[:-1], strict=True):
        for key in ("loss", "eval_loss", "learning_rate", "grad_norm"):
            assert row.get(key) == expected.get(key), key


def test_the_memory_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, copy_model(), memory_learning_rate=0.5, weight_decay=0.1, save_strategy="no")
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    assert found.pop("memory.initial_memory") == (0.5, 0.1)
    assert {lr for lr, _ in found.values()} == {1e-2}
    assert {decay for _, decay in found.values()} == {0.1, 0.0}
    assert all(group["params"] for group in optimizer.param_groups)
    trainer.train()
    logged = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert max(logged) == pytest.approx(1e-2), "of the others: what is logged stays what it was"


def test_the_memorys_learning_rate_counts(tmp_path: Path) -> None:
    moved: list[dict[str, float]] = []
    for rate in (None, 1e-5):
        model = copy_model()
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        trainer_of(
            tmp_path / str(rate), model, memory_learning_rate=rate, save_strategy="no", max_steps=1, warmup_steps=0
        ).train()
        moved.append({name: float((weight - before[name]).abs().max()) for name, weight in model.state_dict().items()})
    alike, own = moved
    assert alike["memory.initial_memory"] == pytest.approx(1e-2, rel=0.01)  # Adam's first step is its learning rate
    assert own["memory.initial_memory"] == pytest.approx(1e-5, rel=0.05)
    assert max(own.values()) == pytest.approx(1e-2, rel=0.01)


def test_held_out_text_is_another(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, copy_model(), per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    total = num_labels = 0.0
    for index in range(4):
        example = held_out(text(1), trainer.args.seed, 3, index)
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            total += float(trainer.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        num_labels += ids.shape[1] - 1
    assert metrics["eval_loss"] == pytest.approx(total / num_labels, rel=1e-5)


@pytest.mark.parametrize("method", KINDS, ids=lambda method: method.kind)
def test_without_memory_the_adapter_alone_is_trained(tmp_path: Path, method: Backpropagation) -> None:
    model = without_memory()
    choose_trained(model, "lora", LORA)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = trainer_of(
        tmp_path, model, backpropagation=method, save_strategy="no", max_steps=2, memory_learning_rate=1.0
    )
    trainer.train()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_without_memory_segments_are_learned_one_by_one(tmp_path: Path) -> None:
    """The gradient is that of the backbone on each segment alone, its last token predicting the next segment's first."""
    model = without_memory()
    ids = torch.tensor([text(2).draw(random.Random(0), 3)["input_ids"]])
    loss = model(input_ids=ids, labels=ids).loss
    plain = torch.cat([model.backbone(ids[:, start : start + S]).logits for start in range(0, 3 * S, S)], 1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(plain[0, :-1], ids[0, 1:]))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match="trained='memory' with num_memory_tokens=0 leaves nothing to train; set trained="
    ):
        choose_trained(without_memory(), "memory")
