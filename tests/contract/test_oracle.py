"""The library agrees with the oracles in logits, loss, memory and the gradient of every parameter."""

import pytest
import torch

from contract.backbones import BACKBONES, DECODERS, M, S, Tiny
from contract.cases import (
    assert_close,
    batch,
    batch_labels,
    first_parameter,
    gradients,
    labels_of,
    model_of,
    oracle,
    oracle_logits,
    text_of,
    texts_of,
    unbatch,
    weights_like,
)
from recurrent_memory.memories.reference import IGNORE, mean_loss

TOLERANCE = 1e-10
every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)


@every_backbone
@pytest.mark.parametrize(("side", "num_memory_tokens"), [("left", M), ("right", 1)])
@pytest.mark.usefixtures("full_precision")
def test_a_batch_of_unequal_rows_is_each_row_alone_by_the_oracle(tiny: Tiny, side: str, num_memory_tokens: int) -> None:
    # What is recalled is divided by what a query has in common with the keys: with one key alone, next to nothing at
    # some positions, and rounding errors grow by as much.
    model = model_of(tiny, num_memory_tokens + (tiny.kind == "associative"))
    texts = texts_of(tiny)
    labels = labels_of(tiny, texts)
    expected = [oracle(tiny, model, text, label) for text, label in zip(texts, labels, strict=True)]
    ids, mask = batch(texts, side)
    output = model(input_ids=ids, attention_mask=mask, labels=batch_labels(tiny, labels, side))

    logits = _logits_of_rows(tiny, output.logits, mask, labels)
    for actual, reference in zip(logits, expected, strict=True):
        assert_close(actual, oracle_logits(reference), TOLERANCE, "logits")
    assert_close(output.loss, mean_loss(expected), TOLERANCE, "loss")
    state = output.memory_state
    for row, reference in enumerate(expected):
        for name, tensor in reference.tensors.items():
            assert_close(state.tensors[name][row], tensor, TOLERANCE, name)
        assert state.pending[row, : state.pending_lengths[row]].tolist() == reference.pending
    assert state.segments_folded.tolist() == [reference.segments_folded for reference in expected]
    assert state.tokens_read.tolist() == [len(text) for text in texts]

    ours = _objective(output.loss, logits, [row for tensor in state.tensors.values() for row in tensor])
    memories = [reference.tensors[name] for name in state.tensors for reference in expected]
    theirs = _objective(mean_loss(expected), [oracle_logits(r) for r in expected], memories)
    slow = gradients(model, theirs)
    for name, gradient in gradients(model, ours).items():
        assert_close(gradient, slow[name], TOLERANCE, f"gradient of {name}")
    assert float(slow[first_parameter(model)].abs().max()) > 1e-3  # or the comparison would say nothing


@every_backbone
@pytest.mark.parametrize("already_read", [3, S, 2 * S + 1])
def test_forward_goes_on_from_a_state(tiny: Tiny, already_read: int) -> None:
    model = model_of(tiny)
    text = text_of(tiny, 3 * S + 1)
    labels = labels_of(tiny, [text])[0]
    if not isinstance(labels, int) and not tiny.is_seq2seq:
        labels = [IGNORE] * already_read + labels[already_read:]
    expected = oracle(tiny, model, text, labels)
    state = model.read(torch.tensor([text[:already_read]]))
    new_labels = labels if isinstance(labels, int) or tiny.is_seq2seq else labels[already_read:]
    output = model(input_ids=torch.tensor([text[already_read:]]), labels=torch.tensor([new_labels]), memory_state=state)
    start = 0 if tiny.is_classifier or tiny.is_seq2seq else already_read
    assert_close(output.logits[0], oracle_logits(expected)[start:], tiny.tolerance, "logits")
    assert_close(output.loss, mean_loss([expected]), tiny.tolerance, "loss")
    for name, tensor in expected.tensors.items():
        assert_close(output.memory_state.tensors[name][0], tensor, tiny.tolerance, name)
    assert output.memory_state.pending[0].tolist() == expected.pending


@pytest.mark.parametrize("tiny", DECODERS, ids=lambda tiny: tiny.name)
@pytest.mark.usefixtures("full_precision")
def test_gradients_flow_through_a_state_from_call_to_call(tiny: Tiny) -> None:
    model = model_of(tiny)
    text = text_of(tiny, 3 * S + 1)
    expected = oracle(tiny, model, text, text)
    state, total = None, torch.zeros(())
    for start, end in [(0, 4), (4, S), (S, S + 1), (S + 1, len(text))]:
        piece = torch.tensor([text[start:end]])
        output = model(input_ids=piece, labels=piece, memory_state=state, num_items_in_batch=1)
        state, total = output.memory_state, total + output.loss
    assert_close(total, expected.loss_sum, TOLERANCE, "loss")
    slow = gradients(model, expected.loss_sum)
    for name, gradient in gradients(model, total).items():
        assert_close(gradient, slow[name], TOLERANCE, f"gradient of {name}")


def _logits_of_rows(tiny: Tiny, logits: torch.Tensor, mask: torch.Tensor, labels: list) -> list[torch.Tensor]:
    if tiny.is_classifier:
        return list(logits)
    if tiny.is_seq2seq:
        return [row[: len(label)] for row, label in zip(logits, labels, strict=True)]
    assert not bool(logits[mask == 0].any())  # zeros at padding
    return unbatch(logits, mask)


def _objective(loss: torch.Tensor, logits: list[torch.Tensor], memories: list[torch.Tensor]) -> torch.Tensor:
    total = loss
    for index, tensor in enumerate([*logits, *memories]):
        total = total + (tensor * weights_like(tensor, index)).sum()
    return total
