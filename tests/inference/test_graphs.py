"""The recorded folding of segments: the same memory, and nothing in it that a GPU would have to be waited for.

Without a GPU what would be recorded is run anew at each replay, on the same buffers: all but the recording is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contract.backbones import BACKBONES, S, Tiny
from contract.cases import assert_same_state, batch, copy_of, model_of, texts_of
from recurrent_memory import ConfigError, MemoryReader, RecurrentMemoryModel
from recurrent_memory import reading as module
from recurrent_memory.inference import graphs
from recurrent_memory.segments import Segment

every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)
gpt2 = BACKBONES[0]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for CUDA's graphs; what is recorded and replayed is written down."""
    seen: list[str] = []

    def record(run: Callable[[], None]) -> Callable[[], None]:
        run()
        seen.append("recorded")

        def replay() -> None:
            seen.append("replayed")
            run()

        return replay

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(module, "GRAPH_DEVICES", ("cpu",))
    return seen


@every_backbone
def test_the_same_memory(tiny: Tiny, replays: list[str]) -> None:
    model = copy_of(tiny)
    texts = batch(texts_of(tiny, (4 * S + 1, 3 * S, 5 * S + 2)), "right")
    plain = model.read(*texts)
    more = batch(texts_of(tiny, (2 * S, S, S + 3), seed=9), "left")
    further = model.read(*more, memory_state=plain)
    model.fast = "graph"
    state = model.read(*texts)
    assert_same_state(state, plain, tiny.tolerance)
    assert replays == ["recorded", *["replayed"] * 2]  # as many as are full in every row
    assert_same_state(model.read(*more, memory_state=state), further, tiny.tolerance)
    assert_same_state(state, plain, tiny.tolerance)  # no buffer was given away
    assert replays.count("recorded") == 1


def test_lanes_and_other_numbers_of_rows(replays: list[str]) -> None:
    model = copy_of(gpt2)
    texts = [torch.tensor(text) for text in texts_of(gpt2, (4 * S + 1, 3 * S, 9 * S, S))]
    plain = dict(MemoryReader(model).read_many(texts, lanes=2))
    model.fast = "graph"
    for number, state in MemoryReader(model).read_many(texts, lanes=2):
        assert_same_state(state, plain[number], gpt2.tolerance)
    assert "replayed" in replays


def test_what_is_recorded_is_of_the_weights_as_they_are(replays: list[str]) -> None:
    model, ids = copy_of(gpt2), torch.tensor(texts_of(gpt2, (4 * S,)))
    model.fast = "graph"
    model.read(ids)
    with torch.no_grad():
        next(model.backbone.parameters()).add_(0.5)  # in place: what was recorded reads them where they are
    assert_same_state(model.read(ids), plain_of(model).read(ids), gpt2.tolerance)
    assert replays.count("recorded") == 1
    model.float()
    assert_same_state(model.read(ids), plain_of(model).read(ids), 1e-5)
    assert replays.count("recorded") == 2
    with torch.enable_grad():
        model(input_ids=ids, labels=ids).loss.backward()
    assert replays.count("recorded") == 2, "with gradients nothing is recorded"


def plain_of(model: RecurrentMemoryModel) -> RecurrentMemoryModel:
    other = copy.deepcopy(model)
    other.fast = "auto"
    return other


def test_few_are_kept(replays: list[str]) -> None:
    model = copy_of(gpt2)
    model.fast = "graph"
    for rows in (1, 2, 3, 4, 5, 5, 1):
        model.read(torch.tensor(texts_of(gpt2, (2 * S,) * rows)))
    assert replays.count("recorded") == 6


def test_a_model_elsewhere_is_refused() -> None:
    model = copy_of(gpt2)
    with pytest.raises(
        ConfigError, match="fast='graph' is for a model on a CUDA GPU, this one is on cpu; take fast='auto'"
    ):
        model.fast = "graph"
    assert model.fast == "auto"


class NobodyLooks(TorchDispatchMode):
    """Fails where a value, or a shape that depends on one, would have to come from the GPU."""

    LOOKING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.LOOKING), name
        if name.startswith("index"):
            indices = [part for arg in args if isinstance(arg, list | tuple) for part in arg if part is not None]
            assert all(part.dtype != torch.bool for part in indices), name
        return func(*args, **(kwargs or {}))


@every_backbone
def test_nobody_looks_at_a_full_segment(tiny: Tiny) -> None:
    model = model_of(tiny)
    segment = Segment.full(torch.tensor(texts_of(tiny, (S, S))))
    with torch.no_grad(), graphs.rows_are_not_packed(), NobodyLooks():
        model.memory.write(model.view, segment, model.initial_state(2).tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-mlm", "gpt2+associative", "gpt2+per-layer"])
def test_a_graph_on_a_gpu(name: str) -> None:
    tiny = next(tiny for tiny in BACKBONES if tiny.name == name)
    model, ids = copy_of(tiny).cuda(), torch.tensor(texts_of(tiny, (9 * S, 9 * S))).cuda()
    plain = model.read(ids)
    model.fast = "graph"
    assert_same_state(model.read(ids), plain, tiny.tolerance)
