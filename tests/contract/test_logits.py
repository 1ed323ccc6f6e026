"""Logits and losses: only where they are asked for, a segment at a time, and summed as `Trainer` wants them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from contract.backbones import BACKBONES, DECODERS, ENCODERS, SEQ2SEQ, VOCAB, M, S, Tiny
from contract.cases import assert_close, batch, batch_labels, copy_of, gradients, labels_of, model_of, text_of, texts_of
from recurrent_memory import InputError, RecurrentMemoryModel
from recurrent_memory.memories.reference import IGNORE

every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)
LANGUAGE_MODELS = [*DECODERS, *(tiny for tiny in ENCODERS if tiny.is_masked_lm)]
every_language_model = pytest.mark.parametrize("tiny", LANGUAGE_MODELS, ids=lambda tiny: tiny.name)
gpt2 = DECODERS[0]


@contextmanager
def watched(module: nn.Module, of_input: bool = False) -> Iterator[list[int]]:
    """How many vectors (or ids) each call of a module was given."""
    seen: list[int] = []

    def see(_: nn.Module, arguments: tuple[Tensor, ...], __: object) -> None:
        seen.append(arguments[0].numel() if of_input else arguments[0].numel() // arguments[0].shape[-1])

    handle = module.register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


def head_of(tiny: Tiny, model: RecurrentMemoryModel) -> nn.Module:
    if not tiny.is_classifier:
        return model.get_output_embeddings()
    classifier = model.backbone.classifier
    return getattr(classifier, "out_proj", classifier)


# ---------------------------------------------------------------------- which logits


@every_language_model
def test_the_kept_logits_are_a_slice_of_all(tiny: Tiny) -> None:
    model = model_of(tiny)
    texts = texts_of(tiny, (2 * S + 3, S, 4, 0))
    ids, mask = batch(texts, "left")
    width = ids.shape[1]
    some = torch.rand(width, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        everything = model(input_ids=ids, attention_mask=mask).logits
        assert everything.shape == (4, width, VOCAB)
        for keep, columns in [
            (None, slice(None)),
            (0, slice(None)),
            (1, slice(-1, None)),
            (S + 1, slice(-S - 1, None)),
            (100, slice(None)),
            (torch.tensor([3, 0, width - 1, 3]), [3, 0, width - 1, 3]),
            (torch.tensor([-1, -2]), [-1, -2]),
            (some, some),
        ]:
            output = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep)
            assert_close(output.logits, everything[:, columns], tiny.tolerance, f"logits_to_keep={keep}")
        assert (
            model(input_ids=ids, attention_mask=mask, logits_to_keep=torch.zeros(width, dtype=torch.bool)).logits
            is None
        )


def test_in_training_with_labels_there_are_no_logits_unless_they_are_asked_for() -> None:
    model = copy_of(gpt2).train()
    ids = torch.tensor([text_of(gpt2, 2 * S)])
    assert model(input_ids=ids, labels=ids).logits is None
    assert model(input_ids=ids, labels=ids, logits_to_keep=2).logits.shape == (1, 2, VOCAB)
    assert model(input_ids=ids).logits.shape == (1, 2 * S, VOCAB)
    assert model.eval()(input_ids=ids, labels=ids).logits.shape == (1, 2 * S, VOCAB)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (-1, "logits_to_keep=-1 must be at least 0"),
        (True, "must be an int, a tensor of indices, or a boolean mask over the new tokens"),
        ("2", "must be an int"),
        (torch.tensor([2]), "out of range of 2 new tokens"),
        (torch.tensor([True]), "out of range of 2 new tokens"),
        (torch.tensor([[0]]), "must be an int"),
        (torch.tensor([0.5]), "must be an int"),
    ],
)
def test_a_wrong_logits_to_keep_is_refused(keep: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_of(gpt2)(input_ids=torch.tensor([[5, 6]]), logits_to_keep=keep)


# ---------------------------------------------------------------------- what is run


@every_backbone
def test_reading_runs_no_head_and_embeds_one_segment_at_a_time(tiny: Tiny) -> None:
    model = model_of(tiny)
    ids = torch.tensor([text_of(tiny, 5 * S + 2), text_of(tiny, 5 * S + 2, seed=1)])
    with watched(head_of(tiny, model)) as head, watched(model.get_input_embeddings(), of_input=True) as embedded:
        model.fold(model.read(ids))
        assert head == []
        assert max(embedded) <= 2 * S
        assert sum(embedded) >= 2 * (5 * S + 2)


@every_language_model
def test_the_head_runs_at_the_positions_asked_for_and_no_others(tiny: Tiny) -> None:
    model = model_of(tiny)
    ids = torch.tensor([text_of(tiny, 3 * S + 2)])
    head = head_of(tiny, model)
    with torch.no_grad(), watched(head) as rows:
        model(input_ids=ids, logits_to_keep=1)
        assert rows == [1]
    with torch.no_grad(), watched(head) as rows:
        model(input_ids=ids)
        assert rows == [S, S, S, 2]
    labels = torch.full_like(ids, IGNORE)
    labels[0, [1, 2, S, 3 * S + 1]] = 7  # a decoder predicts token S at S − 1, in the segment before
    with torch.no_grad(), watched(head) as rows:
        model(input_ids=ids, labels=labels, logits_to_keep=torch.zeros(ids.shape[1], dtype=torch.bool))
        assert rows == ([3, 1] if tiny.is_decoder else [2, 1, 1])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("tiny", DECODERS, ids=lambda tiny: tiny.name)
def test_the_write_block_goes_in_only_when_a_segment_is_folded(tiny: Tiny, use_cache: bool) -> None:
    model, lengths = model_of(tiny), []
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: lengths.append("segment"))
    body = model.backbone.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        ids = torch.tensor([text_of(tiny, S + 2)])
        model.generate(ids, max_new_tokens=2, do_sample=False, use_cache=use_cache)
    finally:
        handle.remove()
        body.remove()
    before = 0 if tiny.kind == "associative" else M  # the block that is read
    written = M - tiny.recent
    folded = [S + before + written] if written or not use_cache else []  # nothing to write: nothing is run
    assert lengths == ["segment", *folded, "segment", 2 + before, "segment", 1 if use_cache else 3 + before]


@pytest.mark.parametrize("tiny", [t for t in ENCODERS if t.is_classifier], ids=lambda tiny: tiny.name)
def test_a_classifier_looks_at_the_last_segment_only(tiny: Tiny) -> None:
    model = model_of(tiny)
    with torch.no_grad(), watched(head_of(tiny, model)) as rows:
        output = model(input_ids=torch.tensor([text_of(tiny, 3 * S + 2)] * 2))
    assert rows == [2]
    assert output.logits.shape == (2, 3)


def test_an_encoder_decoder_without_labels_gives_a_state_only() -> None:
    model = model_of(SEQ2SEQ[0])
    ids = torch.tensor([text_of(SEQ2SEQ[0], 2 * S)])
    with watched(head_of(SEQ2SEQ[0], model)) as rows:
        output = model(input_ids=ids)
    assert rows == []
    assert output.logits is None
    assert output.loss is None
    decoded = model(input_ids=ids, decoder_input_ids=torch.tensor([[0, 5, 6]]))
    assert decoded.logits.shape == (1, 3, VOCAB)


# ---------------------------------------------------------------------- losses


@every_backbone
def test_a_batch_in_four_parts_sums_to_the_batch(tiny: Tiny) -> None:
    model = model_of(tiny)
    texts = texts_of(tiny, (3, 2 * S, S + 1, 5))
    labels = labels_of(tiny, texts)
    ids, mask = batch(texts, "right")
    all_labels = batch_labels(tiny, labels, "right")
    whole = model(input_ids=ids, attention_mask=mask, labels=all_labels).loss
    shifted = all_labels[:, 1:] if tiny.is_decoder else all_labels
    for count in (shifted != IGNORE).sum(), int((shifted != IGNORE).sum()):
        parts = [
            model(
                input_ids=ids[row : row + 1],
                attention_mask=mask[row : row + 1],
                labels=all_labels[row : row + 1],
                num_items_in_batch=count,
            ).loss
            for row in range(4)
        ]
        assert_close(torch.stack(parts).sum(), whole, tiny.tolerance, "loss")
    whole_gradients = gradients(model, whole)
    for name, gradient in gradients(model, torch.stack(parts).sum()).items():
        assert_close(gradient, whole_gradients[name], tiny.tolerance, f"gradient of {name}")


@pytest.mark.parametrize("tiny", [tiny for tiny in BACKBONES if not tiny.is_classifier], ids=lambda tiny: tiny.name)
def test_without_any_label_the_loss_is_zero(tiny: Tiny) -> None:
    model = model_of(tiny)
    ids = torch.tensor([text_of(tiny, 2 * S)])
    loss = model(input_ids=ids, labels=torch.full((1, 2 * S), IGNORE), num_items_in_batch=3).loss
    assert float(loss.detach()) == 0.0
    assert all(not bool(gradient.any()) for gradient in gradients(model, loss).values())


class Rows(Dataset):
    def __init__(self, ids: Tensor, mask: Tensor, labels: Tensor) -> None:
        self.columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


@pytest.mark.parametrize("name", ["gpt2", "bert-mlm", "bert-classify", "t5"])
def test_in_trainer_four_accumulated_batches_of_one_are_one_of_four(name: str, tmp_path: Path) -> None:
    tiny = next(tiny for tiny in BACKBONES if tiny.name == name)
    texts = texts_of(tiny, (3, 2 * S, S + 1, 5))
    labels = batch_labels(tiny, labels_of(tiny, texts), "right")
    rows = Rows(*batch(texts, "right"), labels)
    trained = []
    for size, accumulated in ((4, 1), (1, 4)):
        model = copy_of(tiny, dtype=torch.float32)
        settings = TrainingArguments(
            str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows, compute_metrics=lambda _: {})
        trainer.train()
        trained.append(model)
        assert trainer.evaluate()["eval_loss"] > 0  # the state among the outputs is not gathered
    one, four = (dict(model.named_parameters()) for model in trained)
    start = dict(model_of(tiny, dtype=torch.float32).named_parameters())
    assert not torch.equal(one["memory.initial_memory"], start["memory.initial_memory"])
    for key, parameter in one.items():
        assert_close(four[key], parameter, 1e-5, key)


def test_gradient_checkpointing_computes_the_same() -> None:
    model = copy_of(gpt2).train()
    ids = torch.tensor([text_of(gpt2, 2 * S + 1)])
    expected = gradients(model, model(input_ids=ids, labels=ids).loss)
    enable = (
        getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    )  # its old name
    enable({"use_reentrant": False})
    for name, gradient in gradients(model, model(input_ids=ids, labels=ids).loss).items():
        assert_close(gradient, expected[name], 1e-10, name)


# ---------------------------------------------------------------------- dtypes


@every_backbone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_smaller_dtypes(tiny: Tiny, dtype: torch.dtype) -> None:
    """float32 agrees with float64 to 1e-5, relative; bfloat16 runs."""
    exact, model = model_of(tiny), copy_of(tiny).to(dtype)
    texts = texts_of(tiny, (3, 2 * S + 1))
    ids, mask = batch(texts, "left")
    labels = batch_labels(tiny, labels_of(tiny, texts), "left")
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    assert {tensor.dtype for tensor in output.memory_state.tensors.values()} == {model.memory_dtype} == {dtype}
    assert output.logits.dtype == dtype
    assert bool(torch.isfinite(output.loss))
    assert {tensor.dtype for tensor in model.read(ids, mask).tensors.values()} == {dtype}
    if dtype == torch.float32:
        with torch.no_grad():
            expected = exact(input_ids=ids, attention_mask=mask, labels=labels)
        assert_close(output.logits, expected.logits, 1e-5, "logits")
        assert_close(output.loss, expected.loss, 1e-5, "loss")
        for name, tensor in expected.memory_state.tensors.items():
            assert_close(output.memory_state.tensors[name], tensor, 1e-5, name)


def test_a_state_in_another_dtype_is_read_on() -> None:
    model = model_of(gpt2)
    ids = torch.tensor([text_of(gpt2, 3 * S)])
    state = model.read(ids).to(dtype=torch.bfloat16)
    assert state.memory.dtype == torch.bfloat16
    assert model.read(ids, memory_state=state).memory.shape == (1, M, 16)
