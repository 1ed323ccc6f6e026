"""Noise on the memory between segments: where it goes, how large it is, and that every kind of backpropagation draws the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contract.backbones import BACKBONES, DECODERS, ENCODERS, SEQ2SEQ, S, Tiny
from contract.cases import assert_close, batch, batch_labels, copy_of, labels_of, text_of
from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.errors import ConfigError
from recurrent_memory.training.bptt import Backpropagation, backpropagate, measure
from recurrent_memory.training.disturbance import Disturbance

NOISE = 0.7
WITH_RECENT = next(tiny for tiny in BACKBONES if tiny.recent > 0 and tiny.carry == "gate")
ONE_OF_EACH = [DECODERS[0], ENCODERS[0], ENCODERS[1], SEQ2SEQ[0], WITH_RECENT]


def example(tiny: Tiny) -> dict[str, Tensor]:
    texts = [text_of(tiny, length, row) for row, length in enumerate((3 * S + 2, 4 * S, S + 1))]
    ids, mask = batch(texts, "right")
    return {"input_ids": ids, "attention_mask": mask, "labels": batch_labels(tiny, labels_of(tiny, texts), "right")}


def taken(model: RecurrentMemoryModel, method: Backpropagation, inputs: dict[str, Tensor], seed: int = 0) -> Any:
    model.zero_grad()
    torch.manual_seed(seed)
    outcome = backpropagate(model, **inputs, method=method)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outcome.loss, gradients, torch.rand(2)


@pytest.mark.parametrize("tiny", ONE_OF_EACH, ids=lambda tiny: tiny.name)
def test_every_kind_of_backpropagation_draws_the_same(tiny: Tiny) -> None:
    model, inputs = copy_of(tiny), example(tiny)
    loss, gradients, after = taken(model, Backpropagation(memory_noise=NOISE), inputs)
    assert abs(float(loss - taken(model, Backpropagation(), inputs)[0])) > 1e-6
    assert abs(float(loss - taken(model, Backpropagation(memory_noise=NOISE), inputs, seed=1)[0])) > 1e-6
    for method in (Backpropagation("recompute", memory_noise=NOISE), Backpropagation("truncated", 9, NOISE)):
        other, actual, other_after = taken(model, method, inputs)
        assert_close(other, loss, 1e-10, "loss")
        for name, gradient in gradients.items():
            assert_close(actual[name], gradient, 1e-10, f"gradient of {name}")
        assert torch.equal(other_after, after)


def test_without_noise_nothing_is_drawn_and_a_measurement_has_none() -> None:
    model, inputs = copy_of(DECODERS[0]), example(DECODERS[0])
    torch.manual_seed(0)
    expected = torch.rand(2)
    loss, _, after = taken(model, Backpropagation(memory_noise=0), inputs)
    assert torch.equal(after, expected)
    assert torch.equal(measure(model, **inputs).loss, loss.detach())


def test_its_size_is_a_share_of_the_memorys_own_and_tokens_of_the_text_are_spared() -> None:
    torch.manual_seed(0)
    memory = torch.randn(8, 6, 5000) * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None] + 7
    memory.requires_grad_()
    disturbed = Disturbance(0.5, num_written=4)({"memory": memory})["memory"]
    spread = (disturbed - memory).detach()
    assert torch.equal(spread[:, 4:], torch.zeros_like(spread[:, 4:]))
    torch.testing.assert_close(spread[:, :4].std(-1), 0.5 * memory[:, :4].std(-1).detach(), rtol=0.05, atol=0)
    torch.testing.assert_close(spread.mean(), torch.zeros(()), rtol=0, atol=0.01)
    (gradient,) = torch.autograd.grad(disturbed.sum(), memory)
    assert torch.equal(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "much", True])
def test_impossible_noise(value: Any) -> None:
    with pytest.raises(ConfigError, match="memory_noise=.* must be a number of at least 0"):
        Backpropagation(memory_noise=value)


def test_noise_is_of_memory_tokens_only() -> None:
    tiny = next(tiny for tiny in BACKBONES if tiny.kind == "associative")
    with pytest.raises(ConfigError, match="memory_noise=0.7 is of kind='tokens' only"):
        backpropagate(copy_of(tiny), **example(tiny), method=Backpropagation(memory_noise=NOISE))
