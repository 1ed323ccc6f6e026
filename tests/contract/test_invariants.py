"""The invariants of the design, over every backbone: the same state however a text is read, batched, padded or cut."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.backbones import BACKBONES, DECODERS, M, S, Tiny
from contract.cases import (
    LENGTHS,
    assert_close,
    assert_identical,
    assert_same_state,
    backbone_of,
    batch,
    batch_labels,
    labels_of,
    model_of,
    text_of,
    texts_of,
)
from recurrent_memory import BackboneError, InputError, MemoryState, StateError
from recurrent_memory.segments import Segment

every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)
few_examples = settings(max_examples=5, deadline=None, database=None)


# ---------------------------------------------------------------------- 1: however it is read


@every_backbone
@few_examples
@given(data=st.data())
def test_chunks_and_resuming_from_a_file_change_nothing(tiny: Tiny, data: st.DataObject) -> None:
    model = model_of(tiny)
    text = text_of(tiny, data.draw(st.integers(0, 4 * S), "length"))
    whole = model.read(torch.tensor([text], dtype=torch.long))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6), "cuts"))
    saved = data.draw(st.sets(st.sampled_from(range(len(cuts) + 1))), "saved after")
    state = model.initial_state()
    with tempfile.TemporaryDirectory() as folder:
        for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(text)], strict=True)):
            state = model.read(torch.tensor([text[start:end]], dtype=torch.long), memory_state=state)
            if index in saved:
                state.save(Path(folder) / "state.safetensors")
                state = MemoryState.load(Path(folder) / "state.safetensors", model=model)
    assert_same_state(state, whole, tiny.tolerance)


@every_backbone
def test_forward_and_read_return_the_same_state(tiny: Tiny) -> None:
    model = model_of(tiny)
    for side in ("left", "right"):
        ids, mask = batch(texts_of(tiny), side)
        with torch.no_grad():
            forward = model(input_ids=ids, attention_mask=mask).memory_state
        assert_same_state(forward, model.read(ids, mask), tiny.tolerance)


@every_backbone
def test_steps_are_what_read_does(tiny: Tiny) -> None:
    model = model_of(tiny)
    text = text_of(tiny, 2 * S + 3)
    state = model.initial_state()
    with torch.no_grad():
        for start in range(0, len(text), S):
            output, state = model.step(torch.tensor([text[start : start + S]]), state)
            assert output.last_hidden_state.shape[:2] == (1, len(text[start : start + S]))
            assert output.logits is None
        read = model.fold(model.read(torch.tensor([text])))
    assert_same_state(state, read, tiny.tolerance)
    assert state.segments_folded.tolist() == [3]
    assert state.tokens_read.tolist() == [len(text)]


# ---------------------------------------------------------------------- 2: whatever it is batched with


@every_backbone
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_read_as_if_it_were_alone(tiny: Tiny, side: str) -> None:
    model = model_of(tiny)
    texts = texts_of(tiny)
    together = model.read(*batch(texts, side))
    for row, text in enumerate(texts):
        alone = model.read(torch.tensor([text], dtype=torch.long))
        assert_same_state(together[row], alone, tiny.tolerance)
    # Going on from rows that have different numbers of tokens pending, some of them with nothing new.
    more = texts_of(tiny, lengths=LENGTHS[::-1], seed=50)
    longer = model.read(*batch(more, side), memory_state=together)
    for row, (text, new) in enumerate(zip(texts, more, strict=True)):
        assert_same_state(longer[row], model.read(torch.tensor([text + new], dtype=torch.long)), tiny.tolerance)


@every_backbone
def test_predictions_of_a_row_are_as_if_it_were_alone(tiny: Tiny) -> None:
    model = model_of(tiny)
    texts, more = texts_of(tiny), texts_of(tiny, lengths=LENGTHS[::-1], seed=50)
    state = model.read(*batch(texts, "left"))
    ids, mask = batch(more, "right")
    labels = batch_labels(tiny, labels_of(tiny, more), "right")
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask, labels=labels, memory_state=state)
        for row, new in enumerate(more):
            alone = model(
                input_ids=torch.tensor([new], dtype=torch.long),
                labels=_label_of(tiny, labels, row, new),
                memory_state=state[row],
            )
            if alone.logits is not None and alone.logits.numel():
                width = alone.logits.shape[1]
                assert_close(together.logits[row, :width], alone.logits[0], tiny.tolerance, "logits")
            assert_same_state(together.memory_state[row], alone.memory_state, tiny.tolerance)


def _label_of(tiny: Tiny, labels: torch.Tensor, row: int, new: list[int]) -> torch.Tensor:
    return labels[row : row + 1] if tiny.is_classifier or tiny.is_seq2seq else labels[row : row + 1, : len(new)]


# ---------------------------------------------------------------------- 4: without memory


@every_backbone
def test_without_memory_tokens_it_is_the_backbone_on_separate_segments(tiny: Tiny) -> None:
    model, backbone = model_of(tiny, 0), backbone_of(tiny).double()
    text = text_of(tiny, 2 * S + 4)
    segments = [text[start : start + S] for start in range(0, len(text), S)]
    with torch.no_grad():
        if tiny.is_seq2seq:
            labels = torch.tensor([[5, 6, 7]])
            expected = backbone(input_ids=torch.tensor([[*segments[-1], 1]]), labels=labels)
            output = model(input_ids=torch.tensor([text]), labels=labels)
            assert_close(output.loss, expected.loss, tiny.tolerance, "loss")
            logits = expected.logits[0]
        elif tiny.is_decoder:
            logits = torch.cat([backbone(input_ids=torch.tensor([segment])).logits[0] for segment in segments])
            output = model(input_ids=torch.tensor([text]))
        else:
            cls, sep = tiny.cls_and_sep
            rows = [backbone(input_ids=torch.tensor([[cls, *segment, sep]])).logits[0] for segment in segments]
            logits = rows[-1] if tiny.is_classifier else torch.cat([row[1:-1] for row in rows])
            output = model(input_ids=torch.tensor([text]))
    assert_close(output.logits[0], logits, tiny.tolerance, "logits")
    if tiny.kind == "tokens":
        assert output.memory_state.memory.shape[1] == 0
    assert not any(bool(tensor.any()) for tensor in output.memory_state.tensors.values())
    assert output.memory_state.segments_folded.tolist() == [2]


# ---------------------------------------------------------------------- what a state holds, step and fold


@every_backbone
def test_pending_is_one_to_s_tokens_once_there_is_text(tiny: Tiny) -> None:
    model = model_of(tiny)
    state = model.initial_state()
    assert state.pending_lengths.tolist() == [0]
    if tiny.kind == "tokens":
        assert state.memory.shape == (1, M, model.view.embedding_width)
    for count, token in enumerate(text_of(tiny, 2 * S + 1), start=1):
        state = model.read(torch.tensor([[token]]), memory_state=state)
        assert state.pending_lengths.tolist() == [(count - 1) % S + 1]
        assert state.segments_folded.tolist() == [(count - 1) // S]
        assert state.tokens_read.tolist() == [count]
        assert not any(tensor.requires_grad for tensor in state.tensors.values())


@every_backbone
def test_fold_takes_partial_segments_and_leaves_rows_without_any(tiny: Tiny) -> None:
    model = model_of(tiny)
    texts = [text_of(tiny, length) for length in (0, 2, S, S + 3)]
    state = model.read(*batch(texts, "right"))
    with torch.no_grad():
        folded = model.fold(state)
        for row, text in enumerate(texts):
            alone = model.fold(model.read(torch.tensor([text], dtype=torch.long)))
            assert_same_state(folded[row], alone, tiny.tolerance)
    assert folded.segments_folded.tolist() == [0, 1, 1, 2]
    assert folded.tokens_read.tolist() == [0, 2, S, S + 3]
    assert folded.pending.shape == (4, 0)
    for name, tensor in state.tensors.items():
        assert torch.equal(folded.tensors[name][0], tensor[0])
    assert_identical(model.fold(folded), folded)


@pytest.mark.parametrize("tiny", DECODERS[:1], ids=lambda tiny: tiny.name)
def test_a_state_is_never_changed_in_place(tiny: Tiny) -> None:
    model = model_of(tiny)
    state = model.read(*batch(texts_of(tiny), "left"))
    before = state.clone()
    model.read(*batch(texts_of(tiny, seed=9), "left"), memory_state=state)
    model(input_ids=batch(texts_of(tiny, seed=9), "left")[0], memory_state=state)
    model.fold(state)
    model.generate(torch.full((len(LENGTHS), 2), 5), memory_state=state, max_new_tokens=2 * S, do_sample=False)
    assert_identical(state, before)


def test_step_refuses_what_it_cannot_read() -> None:
    model = model_of(DECODERS[0])
    with pytest.raises(StateError, match=r"step takes a state with nothing pending; call model.fold\(state\) first"):
        model.step(torch.tensor([[5]]), model.read(torch.tensor([[5, 6]])))
    with pytest.raises(InputError, match="7 tokens, more than segment_length=6; use read or forward"):
        model.step(torch.full((1, S + 1), 5), model.initial_state())
    with pytest.raises(InputError, match="the segment has 2 rows, the state 1"):
        model.step(torch.full((2, S), 5), model.initial_state())


def test_step_gives_logits_where_they_are_asked_for_and_leaves_empty_rows() -> None:
    tiny = DECODERS[0]
    model = model_of(tiny)
    text = text_of(tiny, S)
    ids = torch.tensor([text, text, text])
    with torch.no_grad():
        output, state = model.step(Segment(ids, torch.tensor([S, 0, 4])), model.initial_state(3), return_logits=True)
        expected = model(input_ids=ids[:1]).logits[0]
    assert_close(output.logits[0], expected, tiny.tolerance)
    assert_close(output.logits[2, :4], expected[:4], tiny.tolerance)
    assert torch.equal(state.memory[1], model.initial_state().memory[0])
    assert state.segments_folded.tolist() == [1, 0, 1]
    assert state.tokens_read.tolist() == [S, 0, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert-classify", "a classifier has logits for a text, not for its tokens; call the model"),
        ("t5", "an encoder–decoder has no logits at its encoder's positions; pass labels to get the decoder's"),
    ],
)
def test_step_has_no_logits_to_give_where_tokens_have_none(name: str, message: str) -> None:
    model = model_of(next(tiny for tiny in BACKBONES if tiny.name == name))
    with pytest.raises(BackboneError, match=message):
        model.step(torch.tensor([[5, 6]]), model.initial_state(), return_logits=True)


@pytest.mark.parametrize("size", [0, -1, True, 1.0, "2"])
def test_initial_state_wants_a_positive_batch_size(size: object) -> None:
    with pytest.raises(StateError, match="must be an int of at least 1"):
        model_of(DECODERS[0]).initial_state(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_ids": torch.tensor([[1.0, 2.0]])},
            "input_ids must be whole numbers .*torch.float32; pass token ids, not text",
        ),
        ({"input_ids": torch.tensor([[1, 48]])}, "holds 48, outside the model's vocabulary of 48; .*another tokenizer"),
        ({"input_ids": torch.tensor([[1, -1]])}, "holds -1, outside"),
        ({"input_ids": torch.zeros(1, 2, 3, dtype=torch.long)}, r"axes \[batch, tokens\], not the shape \(1, 2, 3\)"),
        ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 3)}, r"\(1, 3\), input_ids \(1, 2\)"),
        ({"input_ids": torch.tensor([[1, 2], [3, 4]]), "memory_state": 1}, "input_ids has 2 rows, memory_state 1"),
        ({}, "input_ids is missing; .*inputs_embeds is not supported"),
        ({"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2, 3]])}, r"labels has the shape \(1, 3\)"),
    ],
)
def test_bad_input_is_refused_in_one_clear_line(arguments: dict, message: str) -> None:
    model = model_of(DECODERS[0])
    if arguments.get("memory_state") == 1:
        arguments = arguments | {"memory_state": model.initial_state(1)}
    with pytest.raises(InputError, match=message) as error:
        model(**arguments)
    assert "\n" not in str(error.value)
