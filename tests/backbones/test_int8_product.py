"""Products of int8 matrices are the same numbers, whichever way they are made."""

from typing import Any

import pytest
import torch

from recurrent_memory.backbones import int8_product
from recurrent_memory.backbones.int8_product import by_floats, by_integers, faster_way

COLUMNS = 2**24 // 128**2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [1, 24, COLUMNS - 1, COLUMNS, COLUMNS + 1, 4 * COLUMNS])
@pytest.mark.parametrize("rows", [1, 33])
def test_both_ways_are_exact(rows: int, columns: int) -> None:
    left, weight = drawn(rows, columns), drawn(40, columns, seed=1)
    exact = left.long() @ weight.long().T
    for way in (by_integers, by_floats):
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


@pytest.mark.parametrize("faster", ["by_integers", "by_floats"])
def test_the_faster_way_is_taken_and_measured_once(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    measured: list[str] = []

    def watched(name: str) -> None:
        way = getattr(int8_product, name)

        def timed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            measured.append(name)
            return way(rows, weight)

        monkeypatch.setattr(int8_product, name, timed)

    def repeat(run: Any, **_: Any) -> list[float]:
        run()
        return [0.0, 1.0 if measured[-1] == faster else 2.0]  # the first one does not count

    watched("by_integers")
    watched("by_floats")
    monkeypatch.setattr(int8_product.timeit, "repeat", repeat)
    faster_way.cache_clear()
    try:
        assert faster_way() is faster_way() is getattr(int8_product, faster)
        assert sorted(measured) == ["by_floats", "by_integers"]
    finally:
        faster_way.cache_clear()
