"""A kind of memory and a family of backbones, added from outside: no core file knows of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from contract.backbones import DECODERS, VOCAB, S
from contract.cases import assert_same_state, backbone_of, batch, text_of, texts_of
from recurrent_memory import BackboneError, ConfigError, MemoryConfig, MemoryState, RecurrentMemoryModel, StateError
from recurrent_memory.backbones import Backbone, Family, families, register_family
from recurrent_memory.backbones.decoder import DecoderBackbone
from recurrent_memory.memories import memory_kinds, register_memory, registry
from recurrent_memory.memories.base import Memory, Rows, Run
from recurrent_memory.segments import Segment


class MeanMemory(Memory):
    """Remembers the mean of the last hidden states of the segments, and how many they were; adds it to the text."""

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.gate = nn.Parameter(torch.zeros(backbone.embedding_width, dtype=backbone.embedding.weight.dtype))

    def reset_parameters(self, backbone: Backbone) -> None:
        nn.init.constant_(self.gate, 0.5)

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        return {"mean": self.gate.new_zeros(batch_size, self.gate.shape[0]), "count": self.gate.new_zeros(batch_size)}

    def row_length(self, backbone: Backbone) -> int:
        return self.config.segment_length

    def fold(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hidden, rows = self.look(backbone, segment, tensors)
        inside = torch.arange(hidden.shape[1]) < segment.lengths[:, None]
        mean = (hidden * inside[..., None]).sum(1) / segment.lengths[:, None]
        count = tensors["count"] + 1
        return rows.text_of(hidden), {
            "mean": tensors["mean"] + (mean - tensors["mean"]) / count[:, None],
            "count": count,
        }

    def look(
        self, backbone: Backbone, segment: Segment, tensors: dict[str, Tensor], run: Run | None = None
    ) -> tuple[Any, Rows]:
        embeddings = backbone.embed(segment.input_ids) + (tensors["mean"] * self.gate)[:, None]
        lengths = segment.lengths if segment.is_ragged else None
        return (run or backbone.encode)(embeddings, lengths), Rows(embeddings, lengths, 0, segment.input_ids.shape[1])


class MambaBackbone(DecoderBackbone):
    """A recurrent model, whose own state is forgotten at each segment."""

    family: ClassVar[str] = "mamba"

    def max_row_length(self) -> int | None:
        return None


@pytest.fixture
def mean_memory() -> Iterator[None]:
    register_memory("mean", f"{__name__}:MeanMemory")
    yield
    del registry._KINDS["mean"]


@pytest.fixture
def mamba_family() -> Iterator[None]:
    register_family(
        Family(
            name="mamba",
            matches=lambda config: config.model_type == "mamba",
            auto_class={"causal-lm": "AutoModelForCausalLM"},
            build=lambda model, _: MambaBackbone(model),
        )
    )
    yield
    families._FAMILIES[:] = [family for family in families._FAMILIES if family.name != "mamba"]


def keeps_the_contract(model: RecurrentMemoryModel, folder: Path, tolerance: float) -> None:
    tiny = DECODERS[0]
    texts = texts_of(tiny)
    together = model.read(*batch(texts, "left"))
    for row, text in enumerate(texts):
        state = model.initial_state()
        for start in range(0, len(text), 4):
            state = model.read(torch.tensor([text[start : start + 4]]), memory_state=state)
        assert_same_state(together[row], state, tolerance)
    ids, mask = batch(texts, "right")
    output = model(input_ids=ids, attention_mask=mask, labels=torch.where(mask > 0, ids, -100))
    assert_same_state(output.memory_state.detach(), together, tolerance)
    output.loss.backward()
    assert all(bool(parameter.grad.any()) for parameter in model.memory.parameters())
    model.save_pretrained(folder / "model")
    together.save(folder / "state")
    loaded = RecurrentMemoryModel.from_pretrained(folder / "model")
    state = MemoryState.load(folder / "state", model=loaded)
    assert_same_state(state, together, 0.0)
    prompt = torch.tensor([text_of(tiny, 3)])
    generated = [
        m.generate(prompt, memory_state=s[4], max_new_tokens=S, do_sample=False)
        for m, s in ((model, together), (loaded, state))
    ]
    assert torch.equal(*generated)
    whole = torch.tensor([texts[4] + prompt[0].tolist()])
    assert torch.equal(model.generate(whole, max_new_tokens=S, do_sample=False)[:, len(texts[4]) :], generated[0])


def test_a_kind_of_memory_from_outside(mean_memory: None, tmp_path: Path) -> None:
    assert "mean" in memory_kinds()
    model = RecurrentMemoryModel.from_backbone(
        backbone_of(DECODERS[0]).double(), MemoryConfig(0, S, kind="mean")
    ).eval()
    assert set(model.initial_state().tensors) == {"mean", "count"}
    with pytest.raises(
        StateError, match=r"a memory of kind 'mean' keeps \['count', 'mean'\], not memory tokens; use .tensors"
    ):
        _ = model.initial_state().memory
    keeps_the_contract(model, tmp_path, 1e-10)


def test_a_family_from_outside(mamba_family: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.MambaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4, bos_token_id=1, eos_token_id=None
    )
    model = RecurrentMemoryModel.from_backbone(hf.MambaForCausalLM(config).double(), MemoryConfig(2, S)).eval()
    assert model.config.family == "mamba"
    keeps_the_contract(model, tmp_path, 1e-6)  # its norm computes in float32


def test_names_that_are_taken(mean_memory: None, mamba_family: None) -> None:
    register_memory("mean", f"{__name__}:MeanMemory")  # the same again is no conflict
    with pytest.raises(ConfigError, match="kind='mean' is already registered as .*MeanMemory; choose another name"):
        register_memory("mean", "elsewhere:Memory")
    with pytest.raises(BackboneError, match="a family named 'mamba' is already registered; choose another name"):
        register_family(families._FAMILIES[0])


def test_a_state_of_a_kind_that_is_not_here(tmp_path: Path) -> None:
    register_memory("mean", f"{__name__}:MeanMemory")
    try:
        model = RecurrentMemoryModel.from_backbone(backbone_of(DECODERS[0]), MemoryConfig(0, S, kind="mean"))
        model.read(torch.tensor([[5, 6]])).save(tmp_path / "state")
    finally:
        del registry._KINDS["mean"]
    with pytest.raises(StateError, match="kind='mean' is not a kind of memory; choose one of"):
        MemoryState.load(tmp_path / "state")
