"""Tokens scored in lanes, a few logits at a time, are what a plain forward of each text gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.backbones import DECODERS, ENCODERS, SEQ2SEQ, VOCAB, S, Tiny
from contract.cases import backbone_of, model_of, texts_of
from recurrent_memory.errors import BackboneError, ConfigError, GenerationError, InputError, SourceChangedError
from recurrent_memory.evaluation.perplexity import MemoryReading, Scoring, TextReading
from recurrent_memory.evaluation.perplexity_plan import Planned
from recurrent_memory.evaluation.perplexity_window import WindowReading
from recurrent_memory.inference.token_feed import TokenFeed

LENGTHS = (2 * S + 1, 2, S - 1, 3 * S + 2, S, S + 1, S + 2, 2 * S)
every_decoder = pytest.mark.parametrize("tiny", DECODERS, ids=lambda tiny: tiny.name)
of_plain = pytest.mark.parametrize("tiny", DECODERS[:8], ids=lambda tiny: tiny.name)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def scored(
    reading: TextReading, texts: Sequence[list[int]], lanes: int, logits_at_a_time: int | None = None
) -> list[np.ndarray]:
    feeds = (
        (Planned(number, str(number), len(text), 0, 0), TokenFeed(iter([torch.tensor(text)])))
        for number, text in enumerate(texts)
    )
    found: dict[int, list[np.ndarray]] = {number: [] for number in range(len(texts))}
    ended = []
    for piece in Scoring(reading, feeds, lanes, logits_at_a_time).run():
        assert piece.document.number not in ended
        found[piece.document.number].append(piece.nll)
        ended += [piece.document.number] * piece.is_last
    assert sorted(ended) == list(found)
    return [np.concatenate(parts) for parts in found.values()]


def nll_of(logits: Tensor, targets: Sequence[int]) -> np.ndarray:
    gathered = logits.double().log_softmax(-1)[: len(targets)].gather(1, torch.tensor(targets)[:, None])
    return -gathered[:, 0].detach().numpy()


def assert_same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float) -> None:
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=f"text {number}")


@every_decoder
def test_with_memory_a_token_costs_what_the_whole_forward_says(tiny: Tiny) -> None:
    model, texts = model_of(tiny), texts_of(tiny, LENGTHS)
    with torch.no_grad():
        expected = [nll_of(model(input_ids=torch.tensor([text])).logits[0], text[1:]) for text in texts]
    assert_same(scored(MemoryReading(model), texts, lanes=1), expected, 1e-8)
    assert_same(scored(MemoryReading(model), texts, lanes=3), expected, max(1e-8, tiny.tolerance))


@every_decoder
def test_with_its_memory_reset_every_segment_stands_alone(tiny: Tiny) -> None:
    model, texts = model_of(tiny), texts_of(tiny, LENGTHS)
    expected = []
    with torch.no_grad():
        for text in texts:
            parts = []
            for start in range(0, len(text), S):
                logits = model(input_ids=torch.tensor([text[start : start + S]])).logits[0]
                parts.append(nll_of(logits, text[start + 1 : start + S + 1]))
            expected.append(np.concatenate(parts))
    assert_same(scored(MemoryReading(model, reset=True), texts, lanes=1), expected, 1e-8)
    assert_same(scored(MemoryReading(model, reset=True), texts, lanes=3), expected, max(1e-8, tiny.tolerance))
    kept = scored(MemoryReading(model), texts, lanes=3)
    assert np.abs(kept[0][:S] - expected[0][:S]).max() < 1e-5  # the first segment has no history
    carried = np.abs(kept[0][S:] - expected[0][S:]).max()
    if tiny.carry == "first":  # carries nothing, reset or not
        assert carried < 1e-8
    else:
        assert carried > 1e-4


@of_plain
@pytest.mark.parametrize(("window", "stride"), [(S, None), (S, 2), (7, 1), (40, None)])
def test_a_window_moves_over_the_text(tiny: Tiny, window: int, stride: int | None) -> None:
    model, texts = backbone_of(tiny).double(), texts_of(tiny, LENGTHS)
    expected = []
    with torch.no_grad():
        for text in texts:
            nll = np.full(len(text) - 1, np.nan)
            for start in range(0, len(text), stride or window):
                targets = text[start + 1 : start + window + 1]
                some = nll_of(model(input_ids=torch.tensor([text[start : start + window]])).logits[0], targets)
                new = np.isnan(nll[start : start + len(some)])  # a token is scored by the first window that predicts it
                nll[start : start + len(some)] = np.where(new, some, nll[start : start + len(some)])
            expected.append(nll)
    for lanes in (1, 3):
        found = scored(WindowReading(model, window, stride), texts, lanes)
        assert_same(found, expected, 1e-8 if lanes == 1 else max(1e-8, tiny.tolerance))


def test_a_text_is_not_drawn_ahead_of_the_model() -> None:
    drawn = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal drawn
        while True:
            drawn += 1
            yield torch.arange(3, 3 + S)

    feeds = iter([(Planned(0, "long", 10_000, 0, 0), TokenFeed(blocks()))])
    pieces = Scoring(MemoryReading(model_of(DECODERS[0])), feeds, 1).run()
    for number in range(1, 20):
        assert len(next(pieces).nll) == S
        assert drawn <= number + 1


@pytest.mark.parametrize("logits_at_a_time", [1, 2 * VOCAB, 5 * VOCAB + 3])
def test_logits_are_made_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, logits_at_a_time: int) -> None:
    reading = MemoryReading(model_of(DECODERS[0]))
    texts = texts_of(DECODERS[0], LENGTHS)
    expected = scored(reading, texts, lanes=4)
    sizes: list[int] = []
    head = reading.view.head

    def counted(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return head(hidden)

    monkeypatch.setattr(reading.view, "head", counted)
    reading.keep([])
    assert_same(scored(reading, texts, lanes=4, logits_at_a_time=logits_at_a_time), expected, 1e-12)
    assert max(sizes) == max(1, logits_at_a_time // VOCAB)
    assert sum(sizes) == sum(len(text) - 1 for text in texts)  # every token once


def test_losses_are_taken_in_float32_at_least() -> None:
    texts = texts_of(DECODERS[0], LENGTHS)
    whole = scored(MemoryReading(model_of(DECODERS[0])), texts, lanes=2)
    half = scored(MemoryReading(model_of(DECODERS[0], dtype=torch.bfloat16)), texts, lanes=2)
    assert {part.dtype for part in half} == {np.dtype("float32")}
    assert np.abs(np.concatenate(whole) - np.concatenate(half)).max() < 0.5


@pytest.mark.parametrize(
    ("reading", "width", "stride"),
    [
        (lambda: MemoryReading(model_of(DECODERS[0])), S, S),
        (lambda: WindowReading(backbone_of(DECODERS[0]), 7, 2), 7, 2),
    ],
)
def test_coordinates(reading: Callable[[], TextReading], width: int, stride: int) -> None:
    position, history = reading().coordinates(np.arange(30))
    for place in range(30):
        row = next(row for row in range(30) if place < row * stride + width)
        assert (position[place], history[place]) == (place - row * stride, row)


@pytest.mark.parametrize("tiny", [ENCODERS[0], ENCODERS[1], SEQ2SEQ[0]], ids=lambda tiny: tiny.name)
def test_only_decoders(tiny: Tiny) -> None:
    with pytest.raises(GenerationError, match="does not continue a text; use a decoder"):
        MemoryReading(model_of(tiny))
    with pytest.raises(GenerationError, match="does not continue a text; use a decoder"):
        WindowReading(backbone_of(tiny), 8)


def test_bad_settings_and_broken_texts() -> None:
    reading = MemoryReading(model_of(DECODERS[0]))
    with pytest.raises(ConfigError, match="lanes=0 must be at least 1"):
        Scoring(reading, iter(()), 0)
    plain = backbone_of(DECODERS[0])
    with pytest.raises(ConfigError, match="window=41 must be 1 to the model's 40 positions"):
        WindowReading(plain, 41)
    with pytest.raises(ConfigError, match="stride=9 must be 1 to the window's 8 tokens"):
        WindowReading(plain, 8, 9)
    with pytest.raises(InputError, match=f"holds {VOCAB}, outside the model's vocabulary"):
        scored(reading, [[1, VOCAB]], lanes=1)
    shorter = iter([(Planned(0, "book", 9, 0, 0), TokenFeed(iter([torch.tensor([3, 4])])))])
    with pytest.raises(SourceChangedError, match="book: ended before its 9 tokens"):
        list(Scoring(MemoryReading(model_of(DECODERS[0])), shorter, 1).run())


def test_a_broken_model_is_named() -> None:
    model = backbone_of(DECODERS[0])
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("inf"))
    with pytest.raises(BackboneError, match="NaN or infinite losses"):
        scored(WindowReading(model, 8), [[3, 4, 5]], lanes=1)
