"""Frozen weights that are cast once give the numbers of those that are cast at every use, to the last bit."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from contract.backbones import BACKBONES, S, Tiny
from contract.cases import batch, batch_labels, labels_of, model_of, text_of
from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.training.bptt import Backpropagation, backpropagate
from recurrent_memory.training.curriculum import Curriculum, Stage, train_curriculum
from recurrent_memory.training.frozen_weights import cast_once
from recurrent_memory.training.trained import LoraSettings, choose_trained
from training.copy_task import AnyLengthTask, arguments, copy_model

METHODS = [Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 2)]


def adapted(tiny: Tiny) -> RecurrentMemoryModel:
    model = copy.deepcopy(model_of(tiny)).float().train()
    choose_trained(model, "lora", LoraSettings(r=2, alpha=4, target_modules=tiny_targets(model)))
    return model


def tiny_targets(model: RecurrentMemoryModel) -> tuple[str, ...]:
    """The linear layers whose names come more than once: those of the blocks."""
    names = [n.rpartition(".")[2] for n, m in model.backbone.named_modules() if type(m) in (nn.Linear, Conv1D)]
    return tuple(sorted({name for name in names if names.count(name) > 1}))


def taken(model: RecurrentMemoryModel, method: Backpropagation, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Any]]:
    model.zero_grad()
    torch.manual_seed(0)
    outcome = backpropagate(model, **inputs, method=method, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    return outcome.loss, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
@pytest.mark.parametrize("tiny", [t for t in BACKBONES if "+" not in t.name], ids=lambda tiny: tiny.name)
def test_the_same_numbers(tiny: Tiny, method: Backpropagation) -> None:
    torch.set_num_threads(1)
    model = adapted(tiny)
    texts = [text_of(tiny, length, row) for row, length in enumerate((3 * S + 2, S + 1))]
    ids, mask = batch(texts, "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": batch_labels(tiny, labels_of(tiny, texts), "right")}
    loss, expected = taken(model, method, inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with cast_once(model):
        assert any("forward" in vars(module) for module in model.modules()), "no layer is frozen"
        other, actual = taken(model, method, inputs)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(other, loss)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert (gradient is None) == (wanted is None)
        assert gradient is None or torch.equal(gradient, wanted)


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.Linear(4, 6, bias=False), Conv1D(6, 4)], ids=repr)
def test_weights_are_cast_once_and_again_when_they_change(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy_model()
    model.backbone.extra = layer.requires_grad_(False)
    x = torch.randn(2, 3, 4)
    casts: list[torch.Size] = []
    cast = Tensor.to

    def watched(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        casts.append(tensor.shape)
        return cast(tensor, *arguments, **options)

    with cast_once(model), torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr(Tensor, "to", watched)
        first, second = layer(x), layer(x)
        assert casts.count(layer.weight.shape) == 1
        assert first.dtype == torch.bfloat16
        assert torch.equal(first, second)
        layer.weight.mul_(2)
        third = layer(x)
        assert casts.count(layer.weight.shape) == 2
    monkeypatch.undo()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), third)


def test_a_forward_pass_that_somebody_replaced_is_left_alone() -> None:
    """Accelerate does so where a model is spread over devices; taking ours away would take its own."""
    model = copy_model()
    model.requires_grad_(False)
    layer = next(module for module in model.modules() if type(module) is nn.Linear)
    theirs = layer.forward = functools.partial(nn.Linear.forward, layer)
    for _ in range(2):
        with cast_once(model):
            assert layer.forward is theirs
        assert layer.forward is theirs


def test_without_autocast_nothing_is_cast() -> None:
    model = copy_model()
    model.requires_grad_(False)
    ids = torch.arange(3 * model.memory_config.segment_length)[None] % 7
    expected = model(input_ids=ids).logits
    with cast_once(model):
        actual = model(input_ids=ids).logits
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_a_training_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a training in bfloat16 are those of one that casts at every use."""
    torch.set_num_threads(1)
    weights: list[dict[str, Tensor]] = []
    used: list[int] = []
    look = "recurrent_memory.training.frozen_weights._Cast._look"
    from recurrent_memory.training import frozen_weights

    plain = frozen_weights._Cast._look

    def watched(self: Any, dtype: torch.dtype) -> None:
        used.append(1)
        plain(self, dtype)

    monkeypatch.setattr(look, watched)
    for name in ("once", "always"):
        if name == "always":
            monkeypatch.setattr(frozen_weights, "_is_frozen", lambda module: False)
            assert used
            used.clear()
        model = copy_model()
        choose_trained(model, "lora", LoraSettings(r=2, alpha=4, target_modules=("query_key_value",)))
        curriculum = Curriculum((Stage(1, 2), Stage(3, 2)))
        train_curriculum(
            model,
            arguments(tmp_path / name, bf16=True),
            examples=AnyLengthTask(),
            curriculum=curriculum,
            num_eval_examples=2,
        )
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert not used
    once, always = weights
    assert all(torch.equal(tensor, always[name]) for name, tensor in once.items())
