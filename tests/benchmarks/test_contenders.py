"""What is measured beside ours does what it is said to do."""

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks import diagonal, plain_loop
from benchmarks.common import Setting
from benchmarks.generation import FullAttention
from benchmarks.models import SHAPES, associative_like, llama, load, mamba_like, num_parameters
from benchmarks.peers import PACKAGE, full_attention, kv_bytes, lucidrains, mamba, sliding_window
from benchmarks.scaling import log_slope, slopes
from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.training.bptt import Backpropagation, backpropagate

S, VOCAB = SHAPES["tiny"].segment_length, SHAPES["tiny"].vocab


def ids_of(tokens: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("carry", ["hidden", "sign", "gate"])
@pytest.mark.parametrize("recent", [0, 2, 4])
@pytest.mark.parametrize("tokens", [S, 3 * S, 3 * S + 2])
def test_the_plain_loop_reads_what_ours_reads(carry: str, recent: int, tokens: int) -> None:
    torch.manual_seed(0)
    memory = MemoryConfig(4, S, carry=carry, recent=recent, slot_embeddings=recent == 2)
    model = RecurrentMemoryModel.from_backbone(llama(SHAPES["tiny"]), memory).double().eval()
    with torch.no_grad():
        for parameter in model.memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = ids_of(tokens, batch=2)
    read = plain_loop.read(model, ids)
    torch.testing.assert_close(read, model.fold(model.read(ids)).memory, rtol=1e-6, atol=1e-6)


def test_the_associative_one_has_the_same_backbone_and_remembers() -> None:
    model = load("tiny")
    other = associative_like(model)
    assert other.memory_config.kind == "associative"
    assert other.memory_config.segment_length == S
    for name, weights in model.backbone.state_dict().items():
        assert torch.equal(other.backbone.state_dict()[name], weights)
    first, second = ids_of(3 * S), ids_of(3 * S)
    second[0, 0] = (second[0, 0] + 1) % VOCAB
    kept = [other.read(ids).tensors["A"] for ids in (first, second)]
    assert kept[0].abs().max() > 0
    assert not torch.equal(*kept)


def test_diagonals_that_write_another_memory_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = diagonal.build("associative", 2, 16, S, Setting()), ids_of(20 * S)
    diagonal.check_same(model, ids)
    read = diagonal.read
    monkeypatch.setattr(
        diagonal, "read", lambda model, ids, schedule: read(model, ids + (schedule == "diagonal"), "sequential")
    )
    with pytest.raises(RuntimeError, match="the diagonals do not write the same memory"):
        diagonal.check_same(model, ids % (VOCAB - 1))


def test_another_memory_is_not_taken_for_the_same() -> None:
    plain = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).sign()
    turned = plain.clone()
    turned[0, 0, 0] *= -1
    assert plain_loop.memory_difference(plain, plain) == 0
    assert plain_loop.memory_difference(turned, plain, is_exact=False) == 2
    with pytest.raises(RuntimeError, match="do not compute the same: 1.6% of their memories differ"):
        plain_loop.memory_difference(turned, plain)
    assert plain_loop.memory_difference(turned.bfloat16(), plain.bfloat16()) == 2


@pytest.mark.parametrize("first", [1, 4 * S - 3])
def test_the_plain_loop_learns_what_ours_learns(first: int) -> None:
    model, ids = load("tiny").double().train(), ids_of(4 * S)
    labels = torch.cat([torch.full((1, first), -100), ids[:, first:]], 1)
    loss = plain_loop.train(model, ids, labels)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for kind in ("full", "recompute"):
        model.zero_grad()
        outcome = backpropagate(model, ids, labels, method=Backpropagation(kind))
        torch.testing.assert_close(outcome.loss, loss, rtol=1e-6, atol=1e-6)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


def test_a_sliding_window_sees_no_further() -> None:
    model = load("tiny")
    window = model.memory_config.segment_length
    reads = sliding_window(model)
    ids = ids_of(4 * window)
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCAB
    layers = [(a.keys, b.keys) for a, b in zip(reads.read(ids).layers, reads.read(other).layers, strict=True)]
    assert all(torch.equal(a, b) for a, b in layers)  # two layers reach back twice the window, not four times
    assert layers[0][0].shape[2] < 2 * window
    short = [cache.layers[-1].keys for cache in (reads.read(ids[:, :window]), reads.read(other[:, :window]))]
    assert not torch.equal(*short)


def test_full_attention_keeps_all_keys_and_values() -> None:
    model = load("tiny")
    cache = full_attention(model).read(ids_of(50))
    kept = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache.get_seq_length() == 50
    assert kept == kv_bytes(model, 50)


def test_full_attention_writes_after_a_text_of_a_length() -> None:
    model = load("tiny")
    writing = FullAttention(model, tokens=20, count=3)
    first = writing.write()
    assert first.shape == (1, 3)
    assert writing.cache.get_seq_length() == 23
    writing.undo()
    assert writing.cache.get_seq_length() == 20
    assert torch.equal(writing.write(), first)


def test_mamba_is_nearest_in_size() -> None:
    model = load("tiny")
    other = mamba_like(model.backbone)
    layer = num_parameters(other.backbone.layers[0])
    assert abs(num_parameters(other) - num_parameters(model.backbone)) <= layer
    assert mamba(model).read(ids_of(9)) is not None


def test_a_package_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert lucidrains(load("tiny")) == f"{PACKAGE} is not installed; pip install {PACKAGE}"


def test_the_135m_is_smollm2s_shape() -> None:
    with torch.device("meta"):
        model = llama(SHAPES["135m"])
    assert isinstance(model, LlamaForCausalLM)
    embeddings = model.get_input_embeddings().weight.numel()
    assert num_parameters(model) - embeddings == 134_515_008  # whose embeddings are tied


def test_slopes() -> None:
    assert log_slope([1, 2, 4, 8], [5, 10, 20, 40]) == pytest.approx(1)
    assert log_slope([10, 100], [7, 7]) == pytest.approx(0)
    rows = [
        {
            "contender": "x",
            "tokens": t,
            "median_s": t**2,
            "seconds": [t**2, 2 * t**2, t**2.5],
            "peak_memory_mb": 3.0 * t,
        }
        for t in (10, 100, 1000)
    ]
    found = slopes("x", [*rows, {"contender": "x", "skipped": "too long", "tokens": 10_000}])
    assert found["num_lengths"] == 3
    assert found["time_slope"] == pytest.approx(2)
    assert found["high_time_slope"] == pytest.approx(2.5)
    assert found["memory_slope"] == pytest.approx(1)
    assert slopes("x", rows[:1])["time_slope"] is None
    unknown = [{**row, "peak_memory_mb": None} for row in rows]
    assert slopes("x", unknown)["memory_slope"] is None
