"""Shares of the time of reading."""

from __future__ import annotations

import pytest

from benchmarks.models import load
from benchmarks.shares import shares


def test_shares_are_of_products_attention_and_all_else() -> None:
    found = shares(load("tiny"), 3)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) > 0.01
