"""What is trained changes; nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contract.backbones import DECODERS, ENCODERS
from contract.cases import copy_of
from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.errors import ConfigError
from recurrent_memory.training.trained import LoraSettings, choose_trained
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from training.copy_task import AnyLengthTask, arguments, copy_model

LORA = LoraSettings(r=2, alpha=4, target_modules=("query_key_value",))


def trained(out: Path, model: RecurrentMemoryModel, resume: str | None = None) -> RecurrentMemoryTrainer:
    torch.set_num_threads(1)
    trainer = RecurrentMemoryTrainer(
        model, arguments(out, weight_decay=0.1), examples=AnyLengthTask(), num_segments=3, num_eval_examples=2
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("what", ["memory", "lora", "all"])
def test_only_what_is_chosen_changes(tmp_path: Path, what: Any) -> None:
    model = copy_model()
    choose_trained(model, what, LORA if what == "lora" else None)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained(tmp_path, model)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    expected = {
        name
        for name, _ in model.named_parameters()
        if what == "all" or name.startswith("memory.") or (what == "lora" and "lora_" in name)
    }
    assert changed == expected
    assert "memory.initial_memory" in changed
    assert any("lora_B" in name for name in changed) == (what == "lora")


def test_an_adapter_is_saved_and_trained_on(tmp_path: Path) -> None:
    model = copy_model()
    choose_trained(model, "lora", LORA)
    trained(tmp_path / "whole", model)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "whole/checkpoint-2")
    choose_trained(loaded, "lora", LORA)  # the adapter is there: none is put in again
    assert list(loaded.config.peft) == ["lora"]
    trained(tmp_path / "whole", loaded, str(tmp_path / "whole/checkpoint-2"))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize("tiny", [DECODERS[0], ENCODERS[0]], ids=lambda tiny: tiny.name)
def test_peft_chooses_the_layers_where_none_are_named(tiny: Any) -> None:
    model = copy_of(tiny)
    choose_trained(model, "lora")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or name.startswith("memory.") for name in names)
    assert len(names) > 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: choose_trained(model, "head"), "trained='head' is not known; choose one of memory, lora, all"),
        (lambda model: choose_trained(model, "all", LORA), "lora is given, but trained='all'"),
        (lambda model: LoraSettings(r=0), "r=0 of a LoRA adapter must be at least 1"),
        (lambda model: choose_trained(model, "lora", LoraSettings(target_modules=("nothing",))), "cannot be put in"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(copy_model())


def test_a_classifiers_head_is_trained_in_any_case() -> None:
    tiny = next(tiny for tiny in ENCODERS if tiny.is_classifier)
    for what in ("memory", "lora"):
        model = copy_of(tiny)
        choose_trained(model, what)
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        heads = {name for name in names if not name.startswith("memory.") and "lora_" not in name}
        assert heads == {"backbone.classifier.weight", "backbone.classifier.bias"}
