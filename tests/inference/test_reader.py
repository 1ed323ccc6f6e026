"""Reading: whatever the text comes from and however it is cut, the state is that of `model.read` on all of it."""

import io
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recurrent_memory import BackboneError, ConfigError, InputError, MemoryReader, MemoryState, RecurrentMemoryModel
from recurrent_memory.inference import reader as reader_module
from tiny_models import S, prose, tiny_model, tiny_tokenizer

TEXT = prose(60)


@pytest.fixture
def model() -> RecurrentMemoryModel:
    return tiny_model()


@pytest.fixture
def reader(model: RecurrentMemoryModel) -> MemoryReader:
    return MemoryReader(model, tiny_tokenizer())


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def read_at_once(model: RecurrentMemoryModel, text: str = TEXT) -> MemoryState:
    return model.read(torch.tensor([ids_of(text)]))


def assert_same_bits(one: MemoryState, other: MemoryState) -> None:
    for name in ("tokens_read", "segments_folded", "pending_lengths", "pending", "memory"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def sources(folder: Path) -> dict[str, Any]:
    file = folder / "text.txt"
    file.write_text(TEXT, "utf-8")
    half = len(TEXT) // 2
    ids = ids_of(TEXT)
    return {
        "name": str(file),
        "path": file,
        "list of paths": [file],
        "open file": io.StringIO(TEXT),
        "iterator of text": iter([TEXT[:half], "", TEXT[half:]]),
        "generator of characters": (char for char in TEXT),
        "list of ids": ids,
        "iterator of ids": iter(ids),
        "chunks of ids": iter([ids[:5], ids[5:]]),
        "list of chunks": [ids[:100], ids[100:]],
        "tensor": torch.tensor(ids),
        "tensor with a batch axis": torch.tensor([ids]),
        "array": torch.tensor(ids, dtype=torch.int32).numpy(),
    }


KINDS = ["name", "path", "list of paths", "open file", "iterator of text", "generator of characters", "list of ids"]
KINDS += ["iterator of ids", "chunks of ids", "list of chunks", "tensor", "tensor with a batch axis", "array"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_state(reader: MemoryReader, tmp_path: Path, kind: str) -> None:
    assert_same_bits(reader.read(sources(tmp_path)[kind]), read_at_once(reader.model))


def test_standard_input(reader: MemoryReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert_same_bits(reader.read("-"), read_at_once(reader.model))


@pytest.mark.parametrize("tokens_per_block", [1, S, S + 1, 5 * S, 10**6])
@pytest.mark.parametrize("length", [1, S - 1, S, S + 1, 2 * S, 200])
def test_the_size_of_the_blocks_changes_nothing(
    model: RecurrentMemoryModel, tokens_per_block: int, length: int
) -> None:
    ids = ids_of(TEXT)[:length]
    state = MemoryReader(model, tokens_per_block=tokens_per_block).read(ids)
    assert_same_bits(state, model.read(torch.tensor([ids])))


def test_ids_need_no_tokenizer_but_text_does(model: RecurrentMemoryModel) -> None:
    reader = MemoryReader(model)
    assert int(reader.read([1, 2, 3]).tokens_read) == 3
    with pytest.raises(
        InputError, match=r"^text needs a tokenizer: MemoryReader\(model, tokenizer\); without one, give token ids$"
    ):
        reader.read(iter(["Mary"]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the text: there is no text in it; give a text of at least one token"),
        (iter([]), "the text: there is no text in it; give a text of at least one token"),
        (iter([""]), "the iterator is empty: there is no text to read; give a file with text in it"),
        (
            b"Mary",
            "cannot read a bytes; give the name of a file, an iterator of str, or token ids (tokenizer(text)['input_ids'])",
        ),
        (
            {"input_ids": [1]},
            "cannot read a dict; give the name of a file, an iterator of str, or token ids (tokenizer(text)['input_ids'])",
        ),
        (7, "cannot read a int; give the name of a file, an iterator of str, or token ids"),
        ([10**6], "input_ids holds 1000000, outside the model's vocabulary of 320; was it made by another tokenizer?"),
        ([-1], "input_ids holds -1, outside the model's vocabulary of 320; was it made by another tokenizer?"),
        (
            torch.zeros(2, 3),
            "cannot read token ids from torch.float32 of the shape [2, 3]; give whole numbers, one text at a time",
        ),
    ],
)
def test_what_cannot_be_read(reader: MemoryReader, source: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        reader.read(source)
    assert str(error.value) == message


def test_the_output_of_a_tokenizer_is_not_taken_for_text(reader: MemoryReader) -> None:
    with pytest.raises(InputError, match="cannot read a BatchEncoding"):
        reader.read(tiny_tokenizer()("Mary"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_every_s": -1}, "save_every_s=-1 must be a number of seconds of at least 0"),
        ({"save_every_s": float("nan")}, "save_every_s=nan must be a number of seconds of at least 0"),
        ({"tokens_per_block": 0}, "tokens_per_block=0 must be an int of at least 1"),
        ({"tokens_per_block": 1.5}, "tokens_per_block=1.5 must be an int of at least 1"),
    ],
)
def test_settings_out_of_range(model: RecurrentMemoryModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MemoryReader(model, **settings)
    assert str(error.value) == message


def test_a_model_in_training_reads_without_dropout_and_stays_in_training(model: RecurrentMemoryModel) -> None:
    expected = read_at_once(model)
    model.train()
    frozen = model.backbone.transformer.h[0]
    frozen.eval()
    assert_same_bits(MemoryReader(model, tiny_tokenizer()).read(iter([TEXT])), expected)
    assert model.training
    assert model.backbone.transformer.h[1].attn.training
    assert not frozen.training


def test_the_state_can_be_trained_from(reader: MemoryReader) -> None:
    state = reader.read(iter([TEXT]))
    ids = torch.tensor([ids_of(" Mary went")])
    reader.model(input_ids=ids, labels=ids, memory_state=state).loss.backward()
    assert reader.model.backbone.transformer.wte.weight.grad is not None


def test_stats(reader: MemoryReader) -> None:
    with pytest.raises(InputError, match="nothing has been read yet; call read first"):
        _ = reader.stats
    state = reader.read(ids_of(TEXT)[: 3 * S + 1])
    stats = reader.stats
    assert (stats.tokens, stats.segments, stats.state_bytes) == (3 * S + 1, 4, state.num_bytes)
    assert stats.tokens_per_s >= stats.tokens / stats.seconds > 0
    assert stats.peak_rss_mb > 50  # torch alone is more


def test_reading_on_from_a_state(reader: MemoryReader) -> None:
    ids = ids_of(TEXT)
    state = reader.read(ids[100:], append_to=reader.read(ids[:100]))
    assert_same_bits(state, read_at_once(reader.model))
    with pytest.raises(InputError, match=r"^append_to holds 2 texts; choose one of them: state\[0\]$"):
        reader.read(iter([TEXT]), append_to=state[[0, 0]])


def test_an_iterator_is_not_drawn_on_far_ahead(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, read = [0], [0]
    distances: list[int] = []
    original = model.read

    def chunks() -> Iterator[list[int]]:
        for _ in range(60):
            drawn[0] += 100
            yield [5] * 100

    def counting(ids: Tensor, **kwargs: Any) -> MemoryState:
        read[0] += ids.shape[1]
        distances.append(drawn[0] - read[0])
        return original(ids, **kwargs)

    monkeypatch.setattr(model, "read", counting)
    MemoryReader(model, tokens_per_block=10 * S).read(chunks())
    assert read[0] == 6000
    assert max(distances) <= 1000


def test_one_line_of_a_great_length_is_held_in_parts_only(
    model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, ahead = [0], [0]
    piece = "Mary went to the garden and " * 40
    tokens_per_char = len(ids_of(piece)) / len(piece)
    read = [0]

    def chunks() -> Iterator[str]:
        for _ in range(700):
            drawn[0] += len(piece)
            yield piece

    def pretending(ids: Tensor, memory_state: MemoryState, **_: object) -> MemoryState:
        read[0] += ids.shape[1]
        ahead[0] = max(ahead[0], drawn[0] - int(read[0] / tokens_per_char))
        return memory_state.advanced(torch.tensor([ids.shape[1]]))

    monkeypatch.setattr(model, "read", pretending)
    MemoryReader(model, tiny_tokenizer()).read(chunks())
    assert drawn[0] == 700 * len(piece)
    assert ahead[0] < 600_000  # of 784,000 characters: a few blocks of 65,536 are on their way


def test_a_memory_that_is_not_a_number_is_an_error(model: RecurrentMemoryModel) -> None:
    with torch.no_grad():
        model.backbone.transformer.ln_f.weight[0] = 1e38
        model.backbone.transformer.wpe.weight.fill_(1e38)
    advice = " became NaN or infinite (dtype torch.float32); use --dtype float32, or a model whose weights are sound"
    ids = ids_of(TEXT)
    with pytest.raises(BackboneError) as error:
        MemoryReader(model, tokens_per_block=2 * S).read(ids)
    assert str(error.value) == f"the memory after {2 * S} tokens{advice}"
    with pytest.raises(BackboneError) as error:
        list(MemoryReader(model).read_many([ids]))
    assert str(error.value) == f"the memory of text 0 (counted from 0){advice}"


def test_no_thread_is_left_after_an_error(reader: MemoryReader) -> None:
    def chunks() -> Iterator[str]:
        yield TEXT * 10
        raise InputError("the connection broke")

    with pytest.raises(InputError, match="the connection broke"):
        reader.read(chunks())
    for thread in threading.enumerate():
        if thread.name == "tokenizer":
            thread.join(5)
            assert not thread.is_alive()


# ---------------------------------------------------------------------- progress


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[int, float | None]] = []
        self.closed = False

    def update(self, tokens: int, fraction: float | None) -> None:
        self.seen.append((tokens, fraction))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(reader_module, "make_progress", lambda *_: recorder)
    return recorder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_progress_knows_the_share_of_a_file(
    reader: MemoryReader, tmp_path: Path, recorder: Recorder, encoding: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 3, encoding)
    reader.read(file, encoding=encoding)
    tokens, fractions = zip(*recorder.seen, strict=True)
    assert list(tokens) == sorted(tokens)
    assert tokens[-1] == reader.stats.tokens
    assert fractions[-1] == pytest.approx(1, abs=0.001)
    assert recorder.closed


def test_progress_of_a_known_number_of_tokens(model: RecurrentMemoryModel, recorder: Recorder) -> None:
    MemoryReader(model, tokens_per_block=10 * S).read(iter([1] * 20 * S), expected_tokens=20 * S)
    assert recorder.seen == [(10 * S, 0.5), (20 * S, 1.0)]


def test_progress_of_many_texts(model: RecurrentMemoryModel, recorder: Recorder) -> None:
    list(MemoryReader(model).read_many([[1] * 40, [2] * 90, [3] * 7], lanes=2))
    tokens = [seen for seen, _ in recorder.seen]
    assert tokens == sorted(tokens)
    assert tokens[-1] == 137
    assert recorder.closed


def test_progress_of_an_unknown_length(reader: MemoryReader, recorder: Recorder) -> None:
    reader.read(iter([TEXT]))
    assert recorder.seen[-1] == (reader.stats.tokens, None)


# ---------------------------------------------------------------------- many texts


def equal_to_five_digits(one: MemoryState, other: MemoryState) -> None:
    scale = float(other.memory.abs().max())
    torch.testing.assert_close(one.memory, other.memory, rtol=1e-5, atol=1e-5 * scale)
    for name in ("tokens_read", "segments_folded", "pending_lengths", "pending"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


LENGTHS = [1, S, S + 1, 700, 2 * S, 5, 3 * S + 2, 17 * S, 64, 16 * S + 1, 333]


@pytest.mark.parametrize("lanes", [1, 3, 20])
def test_many_texts_are_read_as_each_alone(model: RecurrentMemoryModel, lanes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 320, (length,), generator=generator).tolist() for length in LENGTHS]
    found = dict(MemoryReader(model).read_many(iter(texts), lanes=lanes))
    assert sorted(found) == list(range(len(texts)))
    for number, text in enumerate(texts):
        equal_to_five_digits(found[number], model.read(torch.tensor([text])))


def test_short_texts_do_not_wait_for_long_ones(model: RecurrentMemoryModel) -> None:
    texts = [[1] * 100 * S, [2] * S, [3] * S, [4] * S]
    assert [number for number, _ in MemoryReader(model).read_many(texts, lanes=2)] == [1, 2, 3, 0]


def test_texts_are_taken_as_lanes_are_free(model: RecurrentMemoryModel) -> None:
    taken: list[int] = []

    def texts() -> Iterator[list[int]]:
        for number in range(10):
            taken.append(number)
            yield [number] * 5

    states = MemoryReader(model).read_many(texts(), lanes=2)
    assert taken == []
    next(states)
    assert len(taken) == 2


def test_many_texts_of_different_kinds(reader: MemoryReader, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    found = dict(reader.read_many([tmp_path / "a.txt", iter([TEXT]), ids_of(TEXT)]))
    for state in found.values():
        equal_to_five_digits(state, read_at_once(reader.model))


def test_reading_many_leaves_gradients_as_they_are(model: RecurrentMemoryModel) -> None:
    for _ in MemoryReader(model).read_many([[1] * 40, [2] * 90]):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("lanes", [0, -3, 2.0, True])
def test_lanes_out_of_range(reader: MemoryReader, lanes: Any) -> None:
    with pytest.raises(ConfigError) as error:
        reader.read_many([[1]], lanes=lanes)
    assert str(error.value) == f"lanes={lanes!r} must be an int of at least 1"


def test_an_empty_text_among_many(reader: MemoryReader) -> None:
    with pytest.raises(InputError, match=r"^text 1 \(counted from 0\) is empty; leave it out$"):
        list(reader.read_many([[1, 2], []]))


def test_reading_warns_of_nothing(reader: MemoryReader) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.read(iter([TEXT]))


def test_special_tokens_of_an_encoder_are_not_text() -> None:
    from transformers import BertConfig, BertForMaskedLM

    from recurrent_memory import MemoryConfig

    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    backbone = BertForMaskedLM(config).eval()
    memory = MemoryConfig(num_memory_tokens=2, segment_length=8)
    encoder = RecurrentMemoryModel.from_backbone(backbone, memory, cls_token_id=1, sep_token_id=2)
    ids = [1, *range(5, 30), 2]
    expected = encoder.read(torch.tensor([ids]))
    reader = MemoryReader(encoder)
    assert_same_bits(reader.read(ids), expected)
    assert reader.stats.tokens == 25
    (_, many), _ = reader.read_many([ids, ids])
    equal_to_five_digits(many, expected)
