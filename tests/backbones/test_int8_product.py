"""Products of int8 matrices are the same numbers, whichever way they are made."""

import pytest
import torch

from recurrent_memory.backbones import int8_product
from recurrent_memory.backbones.int8_product import by_floats, by_integers, multiply

COLUMNS = 2**24 // 128**2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [1, 24, COLUMNS - 1, COLUMNS, COLUMNS + 1, 4 * COLUMNS])
@pytest.mark.parametrize("rows", [1, 33])
def test_both_ways_are_exact(rows: int, columns: int) -> None:
    left, weight = drawn(rows, columns), drawn(40, columns, seed=1)
    exact = left.long() @ weight.long().T
    for way in (by_integers, by_floats, multiply):
        found = way(left, weight)
        assert found.dtype in (torch.int32, torch.float32)
        assert torch.equal(found.long(), exact)


@pytest.mark.parametrize("columns", [COLUMNS, 3 * COLUMNS + 1])
def test_the_largest_sums_are_exact(columns: int) -> None:
    """Of odd numbers, so that a sum above 2^24 would be rounded in float32."""
    left, weight = torch.full((2, columns), 127, dtype=torch.int8), torch.full((3, columns), 127, dtype=torch.int8)
    left[1, -1] = 126
    expected = torch.tensor([columns * 127 * 127, columns * 127 * 127 - 127]).int()[:, None].expand(2, 3)
    assert torch.equal(by_floats(left, weight).int(), expected)
    assert torch.equal(by_floats(-left - 1, -weight - 1).int(), (left.int() + 1) @ (weight.int() + 1).T)


def test_no_rows() -> None:
    assert by_floats(drawn(0, 4), drawn(3, 4)).shape == (0, 3)


@pytest.mark.parametrize("integers", [True, False])
def test_the_faster_way_is_taken(monkeypatch: pytest.MonkeyPatch, integers: bool) -> None:
    taken: list[str] = []

    def watched(name: str) -> None:
        way = getattr(int8_product, name)
        monkeypatch.setattr(int8_product, name, lambda *args: taken.append(name) or way(*args))

    watched("by_integers")
    watched("by_floats")
    monkeypatch.setattr(
        int8_product, "_seconds", lambda way, *_: 1.0 if (way is int8_product.by_integers) == integers else 2.0
    )
    int8_product._integers_are_faster.cache_clear()
    try:
        multiply(drawn(2, 8), drawn(3, 8))
    finally:
        int8_product._integers_are_faster.cache_clear()
    assert taken == ["by_integers" if integers else "by_floats"]


def test_the_way_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []
    monkeypatch.setattr(int8_product, "_seconds", lambda way, *_: float(measured.append(way) is None))
    int8_product._integers_are_faster.cache_clear()
    for _ in range(3):
        multiply(drawn(2, 8), drawn(3, 8))
    int8_product._integers_are_faster.cache_clear()
    assert len(measured) == 2
