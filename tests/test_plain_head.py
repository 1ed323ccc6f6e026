"""A head that is one matrix is known by what the model does, and its losses and gradients are the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from contract.backbones import BACKBONES, DECODERS, ENCODERS, ROPE, VOCAB, S, Tiny
from contract.cases import assert_close, gradients, model_of
from recurrent_memory import MemoryConfig, RecurrentMemoryModel, head_loss
from recurrent_memory.backbones.base import Backbone
from recurrent_memory.plain_head import plain_head
from recurrent_memory.training.bptt import Backpropagation, backpropagate, measure

LM = [tiny for tiny in [*DECODERS, *ENCODERS] if tiny.name == tiny.family and (tiny.is_decoder or tiny.is_masked_lm)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
N = 11


def named(name: str) -> Tiny:
    return next(tiny for tiny in BACKBONES if tiny.name == name)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def is_plain(model: RecurrentMemoryModel, dtype: torch.dtype = torch.float64) -> bool:
    return plain_head(model.backbone, torch.zeros(2, model.view.embedding_width, dtype=dtype), 2) is not None


def inputs(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, width, generator=generator, dtype=torch.float64).to(dtype)
    return hidden.requires_grad_(), torch.randint(0, VOCAB, (N,), generator=generator)


def test_most_decoders_have_a_plain_head_and_encoders_have_not() -> None:
    found = {tiny.name: is_plain(model_of(tiny)) for tiny in LM}
    assert found == {tiny.name: tiny.is_decoder and not caps(tiny) for tiny in LM}
    assert sum(found.values()) >= 6
    assert found["phi"], "which has a bias"


def caps(tiny: Tiny) -> bool:
    return getattr(model_of(tiny).backbone.config, "final_logit_softcapping", None) is not None


def test_scales_and_caps_are_seen() -> None:
    caps_far_out = Gemma2Config(
        vocab_size=VOCAB, **ROPE, num_key_value_heads=2, head_dim=4, final_logit_softcapping=3e4
    )
    scaled = CohereConfig(vocab_size=VOCAB, **ROPE, logit_scale=0.5)
    not_scaled = CohereConfig(vocab_size=VOCAB, **ROPE, logit_scale=1.0)
    hidden = torch.zeros(2, 16)
    assert plain_head(Gemma2ForCausalLM(caps_far_out), hidden, 2) is None
    assert plain_head(CohereForCausalLM(scaled), hidden, 2) is None
    assert plain_head(CohereForCausalLM(not_scaled), hidden, 2) is not None


def with_adapter(model: RecurrentMemoryModel) -> None:
    model.add_peft_adapter(LoraConfig(r=2, target_modules=["lm_head"]))


def with_hook(model: RecurrentMemoryModel) -> None:
    model.backbone.lm_head.register_forward_hook(lambda _module, _inputs, output: output * 2)


def with_another_forward(model: RecurrentMemoryModel) -> None:
    model.backbone.lm_head.forward = lambda x: x @ model.backbone.lm_head.weight.T * 2


def with_a_head_of_another_kind(model: RecurrentMemoryModel) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    head = model.backbone.lm_head
    model.backbone.lm_head = Doubled(head.in_features, head.out_features, bias=False).to(head.weight.dtype)


CHANGES = [with_adapter, with_hook, with_another_forward, with_a_head_of_another_kind]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_a_changed_head_goes_its_own_way(change: Callable[[RecurrentMemoryModel], None]) -> None:
    model = copy.deepcopy(model_of(named("gpt2")))
    hidden, targets = inputs(model.view.embedding_width, torch.float64)
    assert is_plain(model)
    change(model)
    assert not is_plain(model)
    losses, _ = head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=3 * VOCAB)
    assert_close(losses, cross_entropy(model.view.head(hidden), targets, reduction="none"), 1e-10)


def test_half_precision_goes_another_way() -> None:
    model = copy.deepcopy(model_of(named("gpt2")))
    assert is_plain(model.float(), torch.float32)
    assert not is_plain(model, torch.float64), "hidden states in another dtype"
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(model, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert not is_plain(model.to(dtype), dtype)


@pytest.mark.parametrize("tiny", LM, ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_losses_and_gradients_are_the_plain_ones(tiny: Tiny, trained: bool, dtype: torch.dtype) -> None:
    model = copy.deepcopy(model_of(tiny)).to(dtype).requires_grad_(trained)
    hidden, targets = inputs(model.view.embedding_width, dtype)
    factors = torch.linspace(-1, 2, N, dtype=dtype)  # each loss counts as much as it likes
    logits = head_loss.at_least_float32(model.view.head(hidden))
    plain = cross_entropy(logits, targets, reduction="none")
    losses, is_right = head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=3 * VOCAB)
    assert losses.dtype == dtype
    assert_close(losses, plain, TOLERANCE[dtype], "losses")
    assert torch.equal(is_right, logits.argmax(-1) == targets)
    for _ in range(2):  # the graph may be kept
        (expected,) = torch.autograd.grad(plain @ factors, hidden, retain_graph=True)
        (actual,) = torch.autograd.grad(losses @ factors, hidden, retain_graph=True)
        assert_close(actual, expected, TOLERANCE[dtype], "hidden states")
    if trained:
        wanted, found = gradients(model, plain @ factors), gradients(model, losses @ factors)
        assert any(bool(gradient.any()) for gradient in wanted.values())
        for name, gradient in wanted.items():
            assert_close(found[name], gradient, TOLERANCE[dtype], name)


@pytest.mark.skipif(not hasattr(functional, "linear_cross_entropy"), reason="this PyTorch has no linear_cross_entropy")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_agrees_with_the_fused_loss_of_pytorch(dtype: torch.dtype) -> None:
    model = copy.deepcopy(model_of(named("gpt2"))).to(dtype)
    weight = model.backbone.lm_head.weight
    hidden, targets = inputs(model.view.embedding_width, dtype)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=3)
    theirs = functional.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
    ours = head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=3 * VOCAB)[0].sum()
    assert_close(ours, theirs, TOLERANCE[dtype])
    for found, expected in zip(
        torch.autograd.grad(ours, [hidden, weight]), torch.autograd.grad(theirs, [hidden, weight]), strict=True
    ):
        assert_close(found, expected, TOLERANCE[dtype])


def head_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    run = Backbone.head

    def head(self: Backbone, hidden: Tensor) -> Tensor:
        calls.append(len(hidden))
        return run(self, hidden)

    monkeypatch.setattr(Backbone, "head", head)
    return calls


@pytest.mark.parametrize(
    ("name", "dtype", "trained", "runs"),
    [
        ("gpt2", torch.float32, False, 0),
        ("gpt2", torch.float32, True, 0),
        ("gpt2", torch.bfloat16, False, 1),
        ("gpt2", torch.float16, False, 2),  # gradients that are not scaled yet may be too small
        ("bert-mlm", torch.float32, False, 1),
        ("bert-mlm", torch.float32, True, 2),
    ],
)
def test_a_frozen_head_runs_once(
    name: str, dtype: torch.dtype, trained: bool, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(model_of(named(name))).to(dtype).requires_grad_(trained)
    hidden, targets = inputs(model.view.embedding_width, dtype)
    calls = head_calls(monkeypatch)
    head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=3 * VOCAB)[0].sum().backward()
    assert sorted(calls) == sorted(runs * [3, 3, 3, 2])
    assert hidden.grad is not None
    assert bool(hidden.grad.any())


def test_chunks_are_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(named("bert-mlm"))
    hidden, targets = inputs(model.view.embedding_width, torch.float64)
    calls = head_calls(monkeypatch)
    with torch.no_grad():
        head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=10 * VOCAB)
    assert calls == [6, 5]


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_there_are_no_second_derivatives(trained: bool) -> None:
    model = copy.deepcopy(model_of(named("gpt2"))).requires_grad_(trained)
    hidden, targets = inputs(model.view.embedding_width, torch.float64)
    losses, _ = head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=3 * VOCAB)
    (gradient,) = torch.autograd.grad(losses.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("ignored", [0, 5, 3 * S], ids=["none", "some", "all"])
@pytest.mark.parametrize("tiny", [named("gpt2"), named("gemma3")], ids=["plain", "capped"])
def test_labels_that_are_ignored(tiny: Tiny, ignored: int, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(model_of(tiny)).requires_grad_(trained)
    model.memory.requires_grad_()
    ids = torch.randint(3, VOCAB, (2, 3 * S), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :ignored] = -100

    def run(of: Callable[[], Any]) -> tuple[Any, dict[str, Tensor]]:
        model.zero_grad()
        return of(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    ways: list[Callable[[], Any]] = [
        lambda: backpropagate(model, ids, labels, method=Backpropagation("recompute")).loss,
        lambda: measure(model, ids, labels).loss,
        lambda: backward(model.train()(input_ids=ids, labels=labels).loss),
    ]
    expected = [run(way) for way in ways]
    monkeypatch.setattr(head_loss, "CPU_LOGITS", 2 * VOCAB)
    for way, (loss, wanted) in zip(ways, expected, strict=True):
        value, found = run(way)
        assert_close(value, loss, 1e-10, "loss")
        assert bool(value) == (ignored < 3 * S)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert_close(found[name], gradient, 1e-10, name)


def backward(loss: Tensor) -> Tensor:
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def test_a_tied_head_trains_the_embeddings_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradient has a part of the head's and one of the text's."""
    tiny = named("gpt2")
    model = copy.deepcopy(model_of(tiny))
    assert model.backbone.lm_head.weight is model.view.embedding.weight
    ids = torch.randint(3, VOCAB, (1, 3 * S), generator=torch.Generator().manual_seed(1))
    found: list[Tensor] = []
    for limit in (2**24, 2 * VOCAB):
        monkeypatch.setattr(head_loss, "CPU_LOGITS", limit)
        model.zero_grad()
        model(input_ids=ids, labels=ids, logits_to_keep=1).loss.backward()
        found.append(model.view.embedding.weight.grad.clone())
    assert_close(found[1], found[0], 1e-10)


def test_a_head_that_is_not_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **ROPE, tie_word_embeddings=False)).double()
    model = RecurrentMemoryModel.from_backbone(llama, MemoryConfig(2, S))
    llama.lm_head.weight.requires_grad_(False)  # frozen, while all else is trained
    ids = torch.randint(3, VOCAB, (1, 3 * S), generator=torch.Generator().manual_seed(1))
    found: list[dict[str, Tensor]] = []
    for limit in (2**24, 2 * VOCAB):
        monkeypatch.setattr(head_loss, "CPU_LOGITS", limit)
        model.zero_grad()
        backpropagate(model, ids, ids, method=Backpropagation())
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert not any("lm_head" in name for name in found[0])
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, 1e-6, name)  # RMSNorm computes in float32
