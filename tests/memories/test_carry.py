"""What is carried of a hidden state."""

from pathlib import Path

import pytest
import torch

from contract.backbones import DECODERS, VOCAB
from contract.cases import backbone_of
from recurrent_memory import ConfigError, MemoryConfig, RecurrentMemoryModel
from recurrent_memory.config import CARRY_NAMES
from recurrent_memory.memories.carry import CARRIES, Carry
from tiny_models import S, tiny_backbone

IDS = torch.arange(3 * S)[None]


def carry_of(name: str, width: int = 3, hold: float = 0.0) -> Carry:
    return CARRIES[name](MemoryConfig(carry=name, hold=hold), torch.zeros(5, width))


def model_with(carry: str, num_memory_tokens: int = 2) -> RecurrentMemoryModel:
    torch.manual_seed(1)
    return RecurrentMemoryModel.from_backbone(tiny_backbone(), MemoryConfig(num_memory_tokens, S, carry=carry))


def test_every_way_to_carry_has_a_name() -> None:
    assert tuple(CARRIES) == CARRY_NAMES
    assert MemoryConfig(carry="sign").carry == "sign"


def test_signs_and_their_gradient() -> None:
    hidden = torch.tensor([[-2.0, -0.0, 0.0], [1e-30, -1e-30, 7.0]], requires_grad=True)
    carried = carry_of("sign")(hidden, torch.ones(2, 3), torch.zeros(2, 3))
    assert carried.tolist() == [[-1, 1, 1], [1, -1, 1]]
    gradient = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    carried.backward(gradient)
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, gradient), "straight through"


def test_a_bit_is_held_until_the_hidden_state_is_far_on_the_other_side() -> None:
    hidden = torch.tensor([[-0.6, -0.4, 0.4, 0.6]], requires_grad=True)
    before = torch.tensor([[1.0, 1.0, -1.0, -1.0]], requires_grad=True)
    carried = carry_of("sign", 4, hold=0.5)(hidden, before, torch.zeros(1, 4))
    assert carried.tolist() == [[-1, 1, -1, 1]]
    carried.sum().backward()
    assert hidden.grad is not None
    assert before.grad is not None
    assert hidden.grad.tolist() == [[1, 1, 1, 1]], "straight through"
    assert before.grad.tolist() == [[0.5, 0.5, 0.5, 0.5]]


@pytest.mark.parametrize("hold", [-0.1, float("inf"), float("nan"), "much", True])
def test_an_impossible_hold_is_refused(hold) -> None:
    with pytest.raises(ConfigError, match="hold=.* must be a number of at least 0"):
        MemoryConfig(carry="sign", hold=hold)
    with pytest.raises(ConfigError, match="hold=0.5 is of carry='sign' only; leave it out of carry='hidden'"):
        MemoryConfig(hold=0.5)


@pytest.mark.parametrize("name", CARRY_NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(name: str, value: float) -> None:
    assert not carry_of(name, 1)(torch.tensor([[value]]), torch.ones(1, 1), torch.zeros(1, 1)).isfinite().any()


def test_the_hidden_state_is_carried_as_it_is() -> None:
    hidden = torch.randn(2, 3)
    assert carry_of("hidden")(hidden, torch.ones(2, 3), torch.zeros(2, 3)) is hidden


@pytest.mark.parametrize("tiny", [tiny for tiny in DECODERS if tiny.carry == "norm"], ids=lambda tiny: tiny.name)
def test_the_scale_is_that_of_embeddings(tiny) -> None:
    """Of the layer's output: Gemma multiplies its table by √D."""
    backbone = backbone_of(tiny)
    model = RecurrentMemoryModel.from_backbone(backbone, MemoryConfig(2, 6, carry="norm"))
    with torch.no_grad():
        expected = backbone.get_input_embeddings()(torch.arange(VOCAB)).std()
        memory = model.fold(model.read(torch.arange(1, 7)[None])).tensors["memory"]
    torch.testing.assert_close(model.memory.carry.scale, expected)
    torch.testing.assert_close(memory.square().mean(-1).sqrt(), expected.expand(1, 2), rtol=1e-4, atol=0)


def test_the_scale_does_not_depend_on_the_size_of_the_hidden_state() -> None:
    # Not near 0, where the scale does depend on it: there ε counts.
    hidden = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    hidden = hidden / hidden.square().mean(-1, keepdim=True).sqrt().clamp(max=1)
    carry, initial = carry_of("norm"), torch.zeros(2, 3)
    torch.testing.assert_close(
        carry(hidden * 1000, hidden, initial), carry(hidden, hidden, initial), rtol=1e-4, atol=1e-5
    )
    huge = carry((hidden * 1000).half(), hidden, initial)  # its squares are beyond float16
    assert huge.dtype == torch.float16
    torch.testing.assert_close(huge.float(), carry(hidden, hidden, initial), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("carry", ["gate", "gated-norm", "first"])
def test_a_closed_gate_is_a_memory_that_is_reset(carry: str) -> None:
    model = model_with(carry)
    with torch.no_grad():
        whole = model(input_ids=IDS).logits
        alone = torch.cat([model(input_ids=IDS[:, start : start + S]).logits for start in range(0, 3 * S, S)], 1)
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("carry", ["gate", "gated-norm"])
def test_a_closed_gate_learns_to_open(carry: str) -> None:
    model = model_with(carry)
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradient = model.memory.carry.gate.grad
    assert gradient is not None
    assert gradient.shape == (16,)
    assert bool((gradient != 0).all())


@pytest.mark.parametrize("carry", ["gate", "gated-norm"])
def test_the_gate_is_part_of_the_model(carry: str, tmp_path: Path) -> None:
    model = model_with(carry)
    before = model.fingerprint
    with torch.no_grad():
        model.memory.carry.gate.copy_(torch.randn(16))
    assert model.fingerprint != before
    model.save_pretrained(tmp_path)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert loaded.fingerprint == model.fingerprint
    assert torch.equal(loaded.memory.carry.gate, model.memory.carry.gate)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("carry", ["norm", "gated-norm"])
def test_the_scale_is_part_of_the_model(carry: str, tmp_path: Path) -> None:
    model = model_with(carry)
    model.memory.carry.scale.fill_(0.125)
    model.reset_fingerprint()
    model.save_pretrained(tmp_path)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert float(loaded.memory.carry.scale) == 0.125, "saved, not measured anew"
    assert loaded.fingerprint == model.fingerprint


@pytest.mark.parametrize("carry", CARRY_NAMES)
def test_without_memory_tokens_nothing_is_carried(carry: str) -> None:
    model, plain = model_with(carry, 0), model_with("hidden", 0)
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_of_a_memory_that_is_the_first_again_nothing_that_is_written_is_learned() -> None:
    hidden = torch.randn(2, 3, requires_grad=True)
    initial = torch.randn(2, 3, requires_grad=True)
    carried = carry_of("first")(hidden, torch.ones(2, 3), initial)
    assert torch.equal(carried, initial)
    carried.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert initial.grad is not None
    assert bool((initial.grad == 1).all())
