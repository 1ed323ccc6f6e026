"""What is carried of a hidden state."""

import pytest
import torch

from recurrent_memory import MemoryConfig
from recurrent_memory.config import CARRY_NAMES
from recurrent_memory.memories.carry import CARRIES


def test_every_way_to_carry_has_a_name() -> None:
    assert tuple(CARRIES) == CARRY_NAMES
    assert MemoryConfig(carry="sign").carry == "sign"


def test_signs_and_their_gradient() -> None:
    hidden = torch.tensor([[-2.0, -0.0, 0.0], [1e-30, -1e-30, 7.0]], requires_grad=True)
    carried = CARRIES["sign"]()(hidden)
    assert carried.tolist() == [[-1, 1, 1], [1, -1, 1]]
    gradient = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    carried.backward(gradient)
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, gradient), "straight through"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    assert not CARRIES["sign"]()(torch.tensor([value])).isfinite().any()


def test_the_hidden_state_is_carried_as_it_is() -> None:
    hidden = torch.randn(2, 3)
    assert CARRIES["hidden"]()(hidden) is hidden
