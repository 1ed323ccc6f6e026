"""Rows on threads of their own, a few at a time: the state is that of all rows at once, over every backbone and memory."""

import threading
from collections.abc import Iterator

import pytest
import torch

from contract.backbones import BACKBONES, S, Tiny
from contract.cases import assert_same_state, batch, model_of, text_of, texts_of
from recurrent_memory.inference import row_threads
from recurrent_memory.memories.layerwise import LayerwiseMemory

every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(row_threads, "CPU_POSITIONS", 2 * S)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@every_backbone
def test_the_state_is_that_of_all_rows_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny)
    seen: list[tuple[str, int]] = []
    write = type(model.memory).write

    def watched(self, backbone, segment, tensors):  # type: ignore[no-untyped-def]
        seen.append((threading.current_thread().name, len(segment.lengths)))
        return write(self, backbone, segment, tensors)

    equal = torch.tensor([text_of(tiny, 3 * S + 2, seed) for seed in range(7)])
    unequal, mask = batch(texts_of(tiny), "right")
    with monkeypatch.context() as patch:
        patch.setattr(type(model.memory), "write", watched)
        read = model.read(equal)
        assert {count for _, count in seen} == {1, 2}, "a few at a time"
        ragged = model.fold(model.read(unequal, mask))
    threads = {name for name, _ in seen if name.startswith("rows")}
    assert bool(threads) is not isinstance(model.memory, LayerwiseMemory)
    monkeypatch.setattr(row_threads, "CPU_POSITIONS", 10**9)
    assert_same_state(read, model.read(equal), tiny.tolerance)
    assert_same_state(ragged, model.fold(model.read(unequal, mask)), tiny.tolerance)
