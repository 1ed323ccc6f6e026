"""Memory tokens with embeddings of their own."""

import torch

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from tiny_models import S, tiny_backbone

IDS = torch.arange(3 * S)[None]


def model_with(**settings) -> RecurrentMemoryModel:
    torch.manual_seed(1)
    return RecurrentMemoryModel.from_backbone(tiny_backbone(), MemoryConfig(4, S, **settings)).eval()


def test_they_are_drawn_like_embeddings_and_saved(tmp_path) -> None:
    model = model_with(recent=1, slot_embeddings=True)
    assert model.memory.read_slots.shape == (4, model.view.embedding_width)
    assert model.memory.write_slots.shape == (3, model.view.embedding_width), "what is recent is not written"
    for slots in (model.memory.read_slots, model.memory.write_slots):
        assert 0.5 < float(slots.detach().std()) / float(model.view.embedding_std()) < 2
    model.save_pretrained(tmp_path)
    again = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert torch.equal(again.memory.read_slots, model.memory.read_slots)
    assert torch.equal(again.memory.write_slots, model.memory.write_slots)


def test_at_zero_they_change_nothing() -> None:
    plain, model = model_with(recent=1), model_with(recent=1, slot_embeddings=True)
    with torch.no_grad():
        plain.memory.initial_memory.copy_(model.memory.initial_memory)
    assert not hasattr(plain.memory, "read_slots")
    before = model.read(IDS).memory
    with torch.no_grad():
        model.memory.read_slots.zero_()
        model.memory.write_slots.zero_()
    assert torch.equal(model.read(IDS).memory, plain.read(IDS).memory)
    assert not torch.equal(model.read(IDS).memory, before)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_without_memory_tokens_there_are_none() -> None:
    torch.manual_seed(1)
    model = RecurrentMemoryModel.from_backbone(tiny_backbone(), MemoryConfig(0, S, slot_embeddings=True)).eval()
    assert model.memory.read_slots.numel() == 0
    assert model(IDS).logits.isfinite().all()
