"""The loss through the head in chunks is the plain one, and the logits of a segment are never whole in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

from contract.backbones import DECODERS, ENCODERS, VOCAB, S, Tiny
from contract.cases import assert_close, batch, batch_labels, gradients, labels_of, model_of, texts_of
from recurrent_memory import MemoryConfig, RecurrentMemoryModel, head_loss
from recurrent_memory.training.bptt import Backpropagation, backpropagate, measure

TOLERANCE = 1e-10
# A plain head, one with a soft cap, one with layers of its own.
HEADS = [tiny for tiny in [*DECODERS, *ENCODERS] if tiny.name in ("gpt2", "gemma3", "bert-mlm")]
KINDS = [Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 2)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def two_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two positions."""
    monkeypatch.setattr(head_loss, "CPU_LOGITS", 2 * VOCAB + 1)


@pytest.mark.parametrize("tiny", HEADS, ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("num_positions", [1, 3, 11])  # a part of a chunk, one chunk, several and a part
def test_value_and_gradients_are_the_plain_ones(tiny: Tiny, num_positions: int) -> None:
    model = model_of(tiny)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_positions, model.view.embedding_width, generator=generator, dtype=torch.float64)
    hidden.requires_grad_()
    targets = torch.randint(0, VOCAB, (num_positions,), generator=generator)
    logits = model.view.head(hidden)
    plain = cross_entropy(logits, targets, reduction="none")
    losses, is_right = head_loss.head_losses(model.view, hidden, targets, logits_at_a_time=3 * VOCAB)
    assert_close(losses, plain, TOLERANCE, "losses")
    assert torch.equal(is_right, logits.argmax(-1) == targets)
    expected, actual = gradients(model, plain.sum()), gradients(model, losses.sum())
    assert any(bool(gradient.any()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, TOLERANCE, name)


@pytest.mark.parametrize("tiny", HEADS, ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("method", KINDS, ids=lambda method: method.kind)
def test_training_in_chunks_is_training(tiny: Tiny, method: Backpropagation, request: pytest.FixtureRequest) -> None:
    model = copy.deepcopy(model_of(tiny))
    texts = texts_of(tiny, (3 * S + 2, S, 2 * S + 1))
    ids, mask = batch(texts, "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": batch_labels(tiny, labels_of(tiny, texts), "left")}

    def run() -> tuple[Any, dict[str, Tensor]]:
        model.zero_grad()
        outcome = backpropagate(model, **inputs, method=method)
        return outcome, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, expected = run()
    request.getfixturevalue("two_positions")
    outcome, actual = run()
    assert_close(outcome.loss, plain.loss, TOLERANCE, "loss")
    assert torch.equal(outcome.num_right, plain.num_right)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, TOLERANCE, name)


@pytest.mark.usefixtures("two_positions")
@pytest.mark.parametrize("kept", [None, 0, 3], ids=["none", "all", "some"])
def test_forward_gives_the_same_loss_whatever_logits_are_kept(kept: int | None) -> None:
    tiny = HEADS[0]
    model = copy.deepcopy(model_of(tiny))
    texts = texts_of(tiny, (3 * S + 2, S))
    ids, mask = batch(texts, "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": batch_labels(tiny, labels_of(tiny, texts), "right")}
    whole = model(**inputs)
    output = model.train()(**inputs, logits_to_keep=kept)
    assert_close(output.loss, whole.loss, TOLERANCE, "loss")
    if kept is None:
        assert output.logits is None
    else:
        assert_close(output.logits, whole.logits[:, -kept:], TOLERANCE, "logits")
    expected = gradients(model, whole.loss)
    for name, gradient in gradients(model, output.loss).items():
        assert_close(gradient, expected[name], TOLERANCE, name)


@pytest.mark.usefixtures("two_positions")
def test_half_precision_goes_through_chunks() -> None:
    tiny = HEADS[0]
    model = copy.deepcopy(model_of(tiny, dtype=torch.float32))
    ids = torch.tensor(texts_of(tiny, (3 * S,)))
    exact = measure(model, ids, ids).loss
    found = backpropagate(model, ids, ids, method=KINDS[0], autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert found.loss.dtype == torch.float32
    assert float(found.loss) == pytest.approx(float(exact), rel=0.02)  # bfloat16 has 8 bits
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))])
        return made


VOCABULARY, WIDTH, SEGMENT = 3000, 16, 64


@pytest.fixture
def wide() -> RecurrentMemoryModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=80, n_embd=WIDTH, n_layer=1, n_head=2)
    return RecurrentMemoryModel.from_backbone(GPT2LMHeadModel(config), MemoryConfig(2, SEGMENT)).train()


RUNS: dict[str, Callable[[RecurrentMemoryModel, Tensor], Any]] = {
    **{m.kind: lambda model, ids, m=m: backpropagate(model, ids, ids, method=m) for m in KINDS},
    "forward": lambda model, ids: model(input_ids=ids, labels=ids).loss.backward(),
    "measure": lambda model, ids: measure(model, ids, ids),
}


@pytest.mark.parametrize("run", RUNS)
def test_logits_of_a_segment_are_never_whole(
    run: str, wide: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(0, VOCABULARY, (1, 3 * SEGMENT), generator=torch.Generator().manual_seed(0))
    with Largest() as plain:
        RUNS[run](wide, ids)
    assert plain.numel >= VOCABULARY * SEGMENT
    monkeypatch.setattr(head_loss, "CPU_LOGITS", VOCABULARY * 5)
    with Largest() as chunked:
        RUNS[run](wide, ids)
    assert chunked.numel <= VOCABULARY * WIDTH  # the embeddings and their gradient: a chunk's logits are fewer
