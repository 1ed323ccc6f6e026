"""Text of any length from a memory: what `generate` gives at once, a stretch at a time."""

import time
from functools import wraps
from typing import Any

import psutil
import pytest
import torch

from recurrent_memory import ConfigError, GenerationError, MemoryReader, MemoryState, RecurrentMemoryModel
from recurrent_memory.inference import writing
from recurrent_memory.inference.writing import Sampling, write_text
from recurrent_memory.memories.reference import decoder
from tiny_models import S, prose, tiny_model, tiny_tokenizer


@pytest.fixture
def model() -> RecurrentMemoryModel:
    return tiny_model()


@pytest.fixture
def state(model: RecurrentMemoryModel) -> MemoryState:
    return MemoryReader(model, tiny_tokenizer()).read(iter([prose(9)]))


def written(model: RecurrentMemoryModel, state: MemoryState, **options: Any) -> tuple[list[str], int, MemoryState]:
    parts: list[str] = []
    made, after = write_text(model, tiny_tokenizer(), state, parts.append, **options)
    return parts, made, after


@pytest.mark.parametrize("at_a_time", [1, 7, 64])
def test_stretches_are_one_generation(
    model: RecurrentMemoryModel, state: MemoryState, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(writing, "TOKENS_AT_A_TIME", at_a_time)
    parts, made, after = written(model, state, max_new_tokens=50, sampling=Sampling(greedy=True), ignore_eos=True)
    model.generation_config.eos_token_id = None
    expected = model.generate(None, memory_state=state, max_new_tokens=50, do_sample=False)
    assert "".join(parts) == tiny_tokenizer().decode(expected[0], skip_special_tokens=True)
    assert made == 50
    whole = model.read(expected, memory_state=state)
    assert torch.equal(after.tokens_read, whole.tokens_read)
    torch.testing.assert_close(after.memory, whole.memory, rtol=1e-5, atol=1e-6)


def test_500_tokens_are_those_of_a_loop_that_computes_everything_anew(state: MemoryState) -> None:
    model = tiny_model().double()
    text = text_of(state)
    state = model.read(torch.tensor([text]))
    before = len(text)
    with torch.no_grad():
        for _ in range(500):
            found = decoder(model.backbone, model.memory.initial_memory, text, S)
            assert found.logits is not None
            text.append(int(found.logits[-1].argmax()))
    assert len(set(text[before:])) > 20, "there is something to get wrong"
    parts, made, after = written(model, state, max_new_tokens=500, sampling=Sampling(greedy=True), ignore_eos=True)
    assert made == 500
    assert "".join(parts) == tiny_tokenizer().decode(text[before:], skip_special_tokens=True)
    whole = model.read(torch.tensor([text]))
    torch.testing.assert_close(after.memory, whole.memory, rtol=0, atol=1e-8)
    assert torch.equal(after.pending, whole.pending)


def text_of(state: MemoryState) -> list[int]:
    """A text as long as the one that a state has read."""
    return tiny_tokenizer()(prose(9))["input_ids"][: int(state.tokens_read)]


@pytest.mark.slow
def test_20000_tokens_take_no_more_memory_or_time_a_token_than_the_first(
    model: RecurrentMemoryModel, state: MemoryState
) -> None:
    process, times, sizes = psutil.Process(), list[float](), list[int]()

    def emit(_: str) -> None:
        times.append(time.process_time())
        sizes.append(process.memory_info().rss)

    made, _ = write_text(
        model, tiny_tokenizer(), state, emit, max_new_tokens=20_000, sampling=Sampling(), ignore_eos=True
    )
    assert made == 20_000
    quarter = len(times) // 4
    assert times[-1] - times[-quarter] < 1.2 * (times[quarter] - times[0])
    assert max(sizes[-quarter:]) - max(sizes[:quarter]) < 8e6  # the ids alone are a sixth of a megabyte


def test_a_stretch_goes_on_where_the_one_before_ended(
    model: RecurrentMemoryModel, state: MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "TOKENS_AT_A_TIME", 4)
    body, positions = model.backbone.base_model, list[int]()
    forward = body.forward

    @wraps(forward)
    def counting(*args: Any, **kwargs: Any) -> Any:
        positions.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(body, "forward", counting)
    made, size = 10 * S, model.memory_config.num_memory_tokens
    written(model, state, max_new_tokens=made, sampling=Sampling(greedy=True), ignore_eos=True)
    pending, folds = int(state.pending_lengths), 10
    # The window that is there, every token, the read and the write block of each segment; and at the end, for the state,
    # at most one segment anew.
    expected = size + pending + (made - 1) + folds * 2 * size
    assert expected <= sum(positions) <= expected + S + 2 * size


def test_text_comes_token_by_token(model: RecurrentMemoryModel, state: MemoryState) -> None:
    parts, made, _ = written(model, state, max_new_tokens=30, sampling=Sampling(greedy=True), ignore_eos=True)
    assert made <= len(parts) <= made + 1


def test_a_seed_repeats_what_is_drawn(model: RecurrentMemoryModel, state: MemoryState) -> None:
    texts: list[str] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append("".join(written(model, state, max_new_tokens=40, sampling=Sampling(temperature=2.0))[0]))
    assert texts[0] == texts[1] != texts[2]


def test_the_end_of_the_text_ends_it(
    model: RecurrentMemoryModel, state: MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RecurrentMemoryModel.forward
    calls = [0]

    def ending(**kwargs: Any) -> Any:
        out = original(model, **kwargs)
        calls[0] += 1
        if calls[0] >= 5:
            out.logits[..., 0] = 1e9
        return out

    monkeypatch.setattr(model, "forward", ending)
    parts, made, _ = written(model, state, sampling=Sampling(greedy=True))
    assert made == 5
    assert "<|endoftext|>" not in "".join(parts)
    calls[0] = 0
    parts, made, _ = written(model, state, max_new_tokens=9, sampling=Sampling(greedy=True), ignore_eos=True)
    assert made == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature=0 must be above 0; for the most probable token, use --greedy"),
        ({"temperature": float("nan")}, "temperature=nan must be above 0; for the most probable token, use --greedy"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"greedy": True, "top_k": 4}, "greedy takes the most probable token; leave out temperature, top_k and top_p"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert str(error.value) == message


def test_what_cannot_be_continued(model: RecurrentMemoryModel, state: MemoryState) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be at least 1"):
        written(model, state, max_new_tokens=0)
    with pytest.raises(GenerationError, match=r"the state holds 2 texts; choose one of them: state\[0\]"):
        written(model, state[[0, 0]])
    with pytest.raises(GenerationError, match="nothing to continue"):
        written(model, model.initial_state())
