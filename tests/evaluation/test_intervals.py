"""Wilson's interval against values from its definition; the bootstrap against the normal approximation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent_memory.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(95, 100, 0.8882, 0.9785), (0, 10, 0.0, 0.2775), (200, 200, 0.9812, 1.0)]
)
def test_known_values(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits, trials) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 500), st.data())
def test_the_ends_solve_the_score_equation(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    share = hits / trials
    for end in wilson(hits, trials):
        if 0 < end < 1:
            assert (share - end) ** 2 == pytest.approx(
                1.959963984540054**2 * end * (1 - end) / trials, rel=1e-6, abs=1e-12
            )


def test_the_bootstrap_is_near_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, size=400)
    sums = np.stack([rng.normal(0.5 * counts, 1.0), rng.normal(-2.0 * counts, 3.0)], 1)
    low, high = bootstrap(sums, counts, seed=0)
    mean = sums.sum(0) / counts.sum()
    spread = 1.96 * np.sqrt(((sums - mean * counts[:, None]) ** 2).sum(0)) / counts.sum()  # of a ratio
    np.testing.assert_allclose(low, mean - spread, atol=0.1 * spread.max())
    np.testing.assert_allclose(high, mean + spread, atol=0.1 * spread.max())
    assert [end.tolist() for end in bootstrap(sums, counts, seed=0)] == [low.tolist(), high.tolist()]
    assert bootstrap(sums, counts, seed=1)[0].tolist() != low.tolist()
