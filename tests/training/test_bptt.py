"""Every kind of backpropagation agrees with the whole graph, or with a window written for reading."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.backbones import BACKBONES, DECODERS, ENCODERS, LAYERWISE, SEQ2SEQ, VOCAB, S, Tiny
from contract.cases import (
    assert_close,
    assert_same_state,
    backbone_of,
    batch,
    batch_labels,
    first_parameter,
    gradients,
    labels_of,
    memory_of,
    model_of,
    text_of,
)
from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.errors import ConfigError, InputError
from recurrent_memory.memories.reference import IGNORE
from recurrent_memory.training.bptt import Backpropagation, Outcome, backpropagate, measure
from training.saved_bytes import SavedBytes
from training.windows import window_loss

LENGTHS = (3 * S + 2, 1, 4 * S, S + 1)  # unequal rows: one of 4 segments and a full last one, one of a single token
# Sums in another order differ by rounding in float64; layers that compute in float32 whatever the weights are (RMSNorm)
# give it a thousand million times as much.
TOLERANCE = 1e-10
LAYERWISE_OF_EACH = [
    [t for t in tinies if t.kind == kind and not t.cover][-1] for kind in LAYERWISE for tinies in (DECODERS, ENCODERS)
]
ONE_OF_EACH = [DECODERS[0], ENCODERS[0], ENCODERS[1], SEQ2SEQ[0], *LAYERWISE_OF_EACH]
every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)
one_of_each = pytest.mark.parametrize("tiny", ONE_OF_EACH, ids=lambda tiny: tiny.name)
KINDS = {
    "full": Backpropagation(),
    "recompute": Backpropagation("recompute"),
    "truncated-4": Backpropagation("truncated", 4),
    "truncated-9": Backpropagation("truncated", 9),
}
every_kind = pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def example(tiny: Tiny, lengths: tuple[int, ...] = LENGTHS, side: str = "right") -> dict[str, Tensor]:
    texts = [text_of(tiny, length, row) for row, length in enumerate(lengths)]
    ids, mask = batch(texts, side)
    return {"input_ids": ids, "attention_mask": mask, "labels": batch_labels(tiny, labels_of(tiny, texts), side)}


def taken(model: RecurrentMemoryModel, run: Callable[[RecurrentMemoryModel], Any]) -> tuple[Any, dict[str, Tensor]]:
    """What a run returns, and the gradients that it leaves; the cached model stays as it is."""
    model.zero_grad()
    outcome = run(model)
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return outcome, found


@every_backbone
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_those_of_the_whole_graph(tiny: Tiny, side: str) -> None:
    model, inputs = model_of(tiny), example(tiny, side=side)
    output = model(**inputs)
    expected = gradients(model, output.loss)
    assert float(expected[first_parameter(model)].abs().max()) > 1e-3  # or the comparison would say nothing
    tolerance = TOLERANCE if tiny.exact else tiny.tolerance
    for kind, method in KINDS.items():
        outcome, actual = taken(model, lambda model, method=method: backpropagate(model, **inputs, method=method))
        assert_close(outcome.loss, output.loss, tolerance, f"{kind}: loss")
        for name, gradient in expected.items():
            assert_close(actual[name], gradient, tolerance, f"{kind}: gradient of {name}")
        assert_same_state(outcome.memory_state, output.memory_state.detach(), tolerance)


WITH_QUESTIONS = ((2 * S + 3, 3), (1, S + 2), (2 * S, S), (0, 4), (S + 1, 0))  # tokens of a text, and of its question


def asked_after_folding(
    tiny: Tiny, model: RecurrentMemoryModel, text: list[int], question: list[int], label: Any
) -> Any:
    """The sum of the losses of a text that is read, then folded, then followed by its question."""
    per_token = not (tiny.is_classifier or tiny.is_seq2seq)
    state, total = model.initial_state(1), torch.zeros((), dtype=torch.float64)
    for part, is_last in ((text, not question), (question, True)):
        if not part:
            continue
        labels = None
        if per_token:
            labels = torch.tensor([label[: len(text)] if part is text else label[len(text) :]])
        elif is_last:
            labels = torch.tensor([label])
        output = model(torch.tensor([part]), labels=labels, memory_state=state, num_items_in_batch=1)
        total = total if labels is None else total + output.loss
        state = output.memory_state if is_last else model.fold(output.memory_state)
    return total, state


@every_backbone
def test_a_question_begins_a_segment_of_its_own(tiny: Tiny) -> None:
    model = model_of(tiny)
    rows = [text_of(tiny, sum(lengths), row) for row, lengths in enumerate(WITH_QUESTIONS)]
    labels = labels_of(tiny, rows)
    if not (tiny.is_classifier or tiny.is_seq2seq):
        for label, (length, _) in zip(labels, WITH_QUESTIONS, strict=True):
            label[length : length + 1] = [IGNORE] * len(label[length : length + 1])  # the text does not predict it
    alone = [
        asked_after_folding(tiny, model, row[:length], row[length:], label)
        for row, label, (length, _) in zip(rows, labels, WITH_QUESTIONS, strict=True)
    ]
    slow = sum(loss for loss, _ in alone) / torch.tensor(7.0, dtype=torch.float64)
    expected = gradients(model, slow)
    row_losses = torch.stack([loss.detach() for loss, _ in alone])
    lengths = torch.tensor([length for length, _ in WITH_QUESTIONS])
    tolerance = TOLERANCE if tiny.exact else tiny.tolerance
    for side in ("left", "right"):
        ids, mask = batch(rows, side)
        given = (ids, batch_labels(tiny, labels, side), mask, None, lengths)
        measured = measure(model, *given, num_items_in_batch=7)
        found = {"measured": measured}
        for kind, method in KINDS.items():
            outcome, actual = taken(
                model,
                lambda model, given=given, method=method: backpropagate(
                    model, *given, method=method, num_items_in_batch=7
                ),
            )
            for name, gradient in expected.items():
                assert_close(actual[name], gradient, tolerance, f"{side}, {kind}: gradient of {name}")
            for row, (_, state) in enumerate(alone):
                assert_same_state(outcome.memory_state.index(row).trimmed(), state.detach().trimmed(), tolerance)
            found[kind] = outcome
        for kind, outcome in found.items():
            assert_close(outcome.loss, slow, tolerance, f"{side}, {kind}: loss")
            assert_close(outcome.row_losses, row_losses, tolerance, f"{side}, {kind}: losses of the rows")
            assert int(outcome.num_right) + int(outcome.num_wrong.sum()) == outcome.num_labels
            assert outcome.num_wrong.equal(measured.num_wrong)
        for row in range(len(rows)):
            alone_in_batch = measure(
                model, ids[row : row + 1], given[1][row : row + 1], mask[row : row + 1], None, lengths[row : row + 1]
            )
            assert int(alone_in_batch.num_wrong) == int(measured.num_wrong[row])


# Questions about each text: tokens of the text, and of its questions.
SHARED = ((2 * S + 3, (3, S + 2, 1)), (1, (2,)), (2 * S, (S, 4)), (0, (4, 2)))


@every_backbone
@pytest.mark.parametrize("learns_text", [False, True], ids=["question", "text"])
def test_a_text_with_several_questions_is_as_if_read_for_each(tiny: Tiny, learns_text: bool) -> None:
    model, per_token = model_of(tiny), not (tiny.is_classifier or tiny.is_seq2seq)
    rows: list[list[int]] = []
    texts, lengths = list[int](), list[int]()
    for number, (length, questions) in enumerate(SHARED):
        text = text_of(tiny, length, number)
        for question in questions:
            rows.append(text + text_of(tiny, question, len(rows) + len(SHARED)))
            texts.append(7 - number)
            lengths.append(length)
    labels = labels_of(tiny, rows)
    if per_token and not learns_text:
        for label, length in zip(labels, lengths, strict=True):
            label[: length + 1] = [IGNORE] * (length + 1)
    ids, mask = batch(rows, "right")
    given = (ids, batch_labels(tiny, labels, "right"), mask, None, torch.tensor(lengths))
    # Where layers compute in float32, both are as far off the truth as one is elsewhere.
    tolerance = TOLERANCE if tiny.exact else 2 * tiny.tolerance

    def assert_same(found: Outcome, expected: Outcome, kind: str) -> None:
        assert_close(found.loss, expected.loss, tolerance, f"{kind}: loss")
        assert_close(found.row_losses, expected.row_losses, tolerance, f"{kind}: losses of the rows")
        assert found.num_wrong.equal(expected.num_wrong)
        assert found.num_right.equal(expected.num_right)
        assert_same_state(found.memory_state.trimmed(), expected.memory_state.trimmed(), tolerance)

    measured = measure(model, *given, torch.tensor(texts))
    for kind, method in KINDS.items():
        expected, gradients_of_each = taken(
            model, lambda model, method=method: backpropagate(model, *given, method=method)
        )
        shared, actual = taken(
            model, lambda model, method=method: backpropagate(model, *given, torch.tensor(texts), method=method)
        )
        assert_same(shared, expected, kind)
        assert_same(measured, expected, f"measured, {kind}")
        for name, gradient in gradients_of_each.items():
            assert_close(actual[name], gradient, tolerance, f"{kind}: gradient of {name}")


def test_a_text_with_several_questions_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(DECODERS[0])
    ids = torch.tensor(text_of(DECODERS[0], 3 * S + 2, 0)).repeat(4, 1)
    labels = torch.full_like(ids, IGNORE)
    labels[:, -1] = ids[:, -1]
    batches: list[int] = []
    fold = type(model).fold_segment

    def counting(self: RecurrentMemoryModel, segment: Any, state: Any, **kwargs: Any) -> Any:
        batches.append(len(segment.lengths))
        return fold(self, segment, state, **kwargs)

    monkeypatch.setattr(type(model), "fold_segment", counting)
    given = (ids, labels, None, None, torch.tensor([3 * S] * 4))
    measure(model, *given, torch.tensor([0, 0, 1, 0]))
    assert batches == [2, 2, 2, 4]
    batches.clear()
    measure(model, *given)
    assert batches == [4, 4, 4, 4]


def test_texts_that_are_not_the_same_are_named() -> None:
    model = model_of(DECODERS[0])
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7], [3, 9, 5, 6]])
    labels, method = ids, Backpropagation()

    def tried(texts: list[int], lengths: list[int] | None = None, state: Any = None) -> None:
        breaks = None if lengths is None else torch.tensor(lengths)
        backpropagate(model, ids, labels, None, state, breaks, torch.tensor(texts), method=method)

    tried([0, 0, 1], [3, 3, 3])
    tried([0, 0, 0], [1, 1, 1])
    for texts, lengths in (([0, 0, 0], [3, 3, 3]), ([0, 0, 1], [3, 2, 3])):
        with pytest.raises(InputError, match="must have the same tokens before their questions"):
            tried(texts, lengths)
    with pytest.raises(InputError, match=r"texts has the shape \(2,\)"):
        tried([0, 0], [3, 3, 3])
    with pytest.raises(InputError, match="leave texts out"):
        tried([0, 0, 1])
    state = model.initial_state(3).detach()
    tried([0, 0, 1], [3, 3, 3], state)
    state = replace(state, tensors={"memory": state.memory + torch.tensor([0.0, 1.0, 0.0])[:, None, None]})
    with pytest.raises(InputError, match="must go on from the same state"):
        tried([0, 0, 1], [3, 3, 3], state)


def test_text_lengths_that_do_not_fit_are_named() -> None:
    model = model_of(DECODERS[0])
    ids = torch.zeros(2, 5, dtype=torch.long)
    for lengths in ([5, 6], [5], [-1, 2]):
        with pytest.raises(InputError, match=r"text_lengths=.* must be one for each row, 0 to its length \(\[5, 5\]\)"):
            backpropagate(model, ids, ids, text_lengths=torch.tensor(lengths), method=Backpropagation())


@every_backbone
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_is_that_of_the_oracle_for_every_loss(tiny: Tiny, window: int) -> None:
    model = model_of(tiny)
    texts = [text_of(tiny, length, row) for row, length in enumerate(LENGTHS)]
    labels = labels_of(tiny, texts)
    ids, mask = batch(texts, "right")
    slow = sum(
        window_loss(tiny, model, text, label, window) for text, label in zip(texts, labels, strict=True)
    ) / torch.tensor(7.0, dtype=torch.float64)
    outcome, actual = taken(
        model,
        lambda model: backpropagate(
            model,
            ids,
            batch_labels(tiny, labels, "right"),
            mask,
            method=Backpropagation("truncated", window),
            num_items_in_batch=7,
        ),
    )
    tolerance = TOLERANCE if tiny.exact else tiny.tolerance
    assert_close(outcome.loss, slow, tolerance, "loss")
    for name, gradient in gradients(model, slow).items():
        assert_close(actual[name], gradient, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("window", [1, 2, 3])
def test_gradients_are_exactly_zero_beyond_the_window(window: int) -> None:
    neox = next(tiny for tiny in DECODERS if tiny.name == "gpt-neox")  # its head is not its embedding
    model, num_segments = model_of(neox), 5
    ids = torch.arange(num_segments * S)[None]  # every token occurs once, so that its embedding tells its segment
    labels = torch.full_like(ids, IGNORE)
    labels[0, -1] = 3
    _, found = taken(
        model, lambda model: backpropagate(model, ids, labels, method=Backpropagation("truncated", window))
    )
    of_tokens = found["backbone.gpt_neox.embed_in.weight"][: num_segments * S].abs().amax(1)
    reached = of_tokens.reshape(num_segments, S).amax(1)
    assert bool((reached[: num_segments - window] == 0.0).all())
    assert bool((reached[num_segments - window :] > 0.0).all())
    assert not bool(found["memory.initial_memory"].any())


@one_of_each
@pytest.mark.parametrize(("method", "short", "long"), [
    (Backpropagation("recompute"), 4, 64),
    (Backpropagation("truncated", 2), 4, 64),
], ids=["recompute", "truncated"])  # fmt: skip
def test_what_is_kept_does_not_grow_with_the_text(tiny: Tiny, method: Backpropagation, short: int, long: int) -> None:
    model = model_of(tiny)
    peaks: list[int] = []
    for num_segments in (short, long):
        inputs = example(tiny, (num_segments * S, num_segments * S))
        with SavedBytes() as saved:
            taken(model, lambda model, inputs=inputs: backpropagate(model, **inputs, method=method))
        assert saved.now == 0
        peaks.append(saved.peak)
    assert peaks[1] <= 1.1 * peaks[0]
    with SavedBytes() as saved:
        taken(model, lambda model: backpropagate(model, **example(tiny, (16 * S, 16 * S)), method=Backpropagation()))
    assert saved.peak > 4 * peaks[1], "the whole graph is that much larger: the measure measures"


def with_dropout(tiny: Tiny) -> RecurrentMemoryModel:
    torch.manual_seed(0)
    backbone = backbone_of(tiny)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return RecurrentMemoryModel.from_backbone(backbone, memory_of(tiny), **tiny.arguments).double().train()


@one_of_each
@pytest.mark.parametrize(
    "method", [Backpropagation("recompute"), Backpropagation("truncated", 4)], ids=lambda m: m.kind
)
def test_dropout_is_the_same_when_a_segment_runs_again(tiny: Tiny, method: Backpropagation) -> None:
    model, inputs = with_dropout(tiny), example(tiny)
    results: list[tuple[Tensor, dict[str, Tensor], Tensor]] = []
    for kind in (Backpropagation(), method, Backpropagation()):
        torch.manual_seed(len(results) // 2)
        outcome, found = taken(model, lambda model, kind=kind: backpropagate(model, **inputs, method=kind))
        results.append((outcome.loss, found, torch.rand(3)))
    (loss, expected, after), (other_loss, actual, other_after), (loss_of_another_seed, _, _) = results
    assert abs(float(loss - loss_of_another_seed)) > 1e-3  # dropout is on
    assert_close(other_loss, loss, TOLERANCE, "loss")
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, TOLERANCE, f"gradient of {name}")
    assert torch.equal(other_after, after), "the generator stands where the forward pass left it"


@one_of_each
@pytest.mark.parametrize("method", [Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 2)],
                         ids=lambda m: m.kind)  # fmt: skip
def test_accumulated_parts_are_the_whole_batch(tiny: Tiny, method: Backpropagation) -> None:
    model, inputs = model_of(tiny), example(tiny)
    whole, expected = taken(model, lambda model: backpropagate(model, **inputs, method=method, loss_scale=3.0))
    parts: list[Tensor] = []

    def accumulate(model: RecurrentMemoryModel) -> None:
        for row in range(len(LENGTHS)):
            part = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            outcome = backpropagate(model, **part, method=method, num_items_in_batch=whole.num_labels, loss_scale=3.0)
            parts.append(outcome.loss)

    _, actual = taken(model, accumulate)
    tolerance = TOLERANCE if tiny.exact else tiny.tolerance
    assert_close(torch.stack(parts).sum(), whole.loss, tolerance, "loss")
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, tolerance * 3, f"gradient of {name}")


def test_the_head_runs_at_the_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = DECODERS[0]
    model = copy.deepcopy(model_of(tiny))
    ids = torch.tensor([text_of(tiny, 4 * S)])
    labels = torch.full_like(ids, IGNORE)
    labels[0, -2:] = ids[0, -2:]
    widths: list[int] = []
    head = type(model.view).head

    def watched(view: object, hidden: Tensor) -> Tensor:
        widths.append(hidden.shape[0])
        return head(view, hidden)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.view), "head", watched)
    for method in (Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 2)):
        widths.clear()
        outcome = backpropagate(model, ids, labels, method=method)
        assert widths == [2]
        assert outcome.num_labels == 2


def test_far_segments_are_read_without_a_graph() -> None:
    tiny = DECODERS[0]
    model = model_of(tiny)
    ids = torch.tensor([text_of(tiny, 16 * S)])
    labels = torch.full_like(ids, IGNORE)
    labels[0, -1] = ids[0, -1]
    with SavedBytes() as one:
        taken(model, lambda model: backpropagate(model, ids[:, -S:], labels[:, -S:], method=Backpropagation()))
    with SavedBytes() as many:
        taken(model, lambda model: backpropagate(model, ids, labels, method=Backpropagation("truncated", 1)))
    assert many.peak <= one.peak * 1.1


@one_of_each
def test_right_answers_are_counted(tiny: Tiny) -> None:
    model, inputs = model_of(tiny), example(tiny)
    output = model(**inputs)
    labels, logits = inputs["labels"], output.logits
    if tiny.is_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    right = int((logits.argmax(-1) == labels).sum())
    labels = labels.clone().masked_fill_(labels != IGNORE, 0)
    for method in (Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 2)):
        outcome, _ = taken(model, lambda model, method=method: backpropagate(model, **inputs, method=method))
        assert (int(outcome.num_right), outcome.num_labels) == (right, int((labels != IGNORE).sum()))
    measured = measure(model, **inputs)
    assert (int(measured.num_right), measured.num_labels) == (right, int((labels != IGNORE).sum()))
    assert_close(measured.loss, output.loss, TOLERANCE if tiny.exact else tiny.tolerance)
    assert not measured.loss.requires_grad


@every_kind
def test_a_text_goes_on_from_a_state(method: Backpropagation) -> None:
    tiny = DECODERS[0]
    model = model_of(tiny)
    ids = torch.tensor([text_of(tiny, 4 * S + 2)])
    state = model.read(ids[:, : S + 3])
    output = model(input_ids=ids[:, S + 3 :], labels=ids[:, S + 3 :], memory_state=state)
    expected = gradients(model, output.loss)
    outcome, actual = taken(
        model, lambda model: backpropagate(model, ids[:, S + 3 :], ids[:, S + 3 :], memory_state=state, method=method)
    )
    assert_close(outcome.loss, output.loss, TOLERANCE)
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, TOLERANCE, f"gradient of {name}")
    assert_close(outcome.memory_state.memory, output.memory_state.memory, TOLERANCE)


@every_kind
def test_a_batch_without_labels_gives_nothing(method: Backpropagation) -> None:
    tiny = DECODERS[0]
    ids = torch.tensor([text_of(tiny, 2 * S)])
    model = model_of(tiny)
    outcome, found = taken(model, lambda model: backpropagate(model, ids, torch.full_like(ids, IGNORE), method=method))
    assert (float(outcome.loss), outcome.num_labels) == (0.0, 0)
    assert not any(bool(gradient.any()) for gradient in found.values())
    assert_close(outcome.memory_state.memory, model.read(ids).memory, TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("backward",), "kind='backward' is not a kind of backpropagation; choose one of full, truncated, recompute"),
        (("truncated",), "window=None must be an int of at least 1"),
        (("truncated", 0), "window=0 must be an int of at least 1"),
        (("truncated", True), "window=True must be"),
        (("full", 2), "window=2 is of kind='truncated' only; leave it out of 'full'"),
    ],
)
def test_bad_settings_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Backpropagation(*arguments)


def test_labels_of_another_shape_are_named() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(InputError, match=r"labels has the shape \(2, 4\), input_ids \(2, 5\)"):
        backpropagate(model_of(DECODERS[0]), ids, ids[:, 1:], method=Backpropagation())
    with pytest.raises(InputError, match="they must be equal"):
        backpropagate(model_of(ENCODERS[1]), ids + VOCAB - 5, torch.zeros(3).long(), method=Backpropagation())
