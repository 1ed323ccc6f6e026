"""How the benchmarks measure."""

import statistics
import sys
import time

import pytest
import torch

from benchmarks.common import (
    Budget,
    Contender,
    Peak,
    Report,
    Setting,
    by_turns,
    costs_of,
    flops_of,
    has_room,
    median_interval,
    timing,
)


def test_contenders_run_by_turns_after_a_warm_up() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("a")
        time.sleep(0.03)

    contenders = [
        Contender("A", slow, lambda: calls.append("undo")),
        Contender("B", lambda: calls.append("b")),
    ]
    seconds = by_turns(contenders, 9, "cpu")
    assert calls.count("b") == 10  # once to warm up
    rounds = "".join(calls).replace("aundo", "A").replace("b", "B")
    turns = {rounds[at : at + 2] for at in range(0, len(rounds), 2)}
    assert turns == {"AB", "BA"}  # both in every round, in both orders
    assert {name: len(values) for name, values in seconds.items()} == {"A": 9, "B": 9}
    assert min(seconds["A"]) >= 0.03


@pytest.mark.parametrize(
    ("values", "low", "high", "confidence"),
    [
        ([3.0], 3.0, 3.0, 0.0),
        ([5.0, 1.0, 3.0], 1.0, 5.0, 0.75),  # 1 − 2/2³
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0, 5.0, 0.9375),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 60.0], 1.0, 60.0, 0.9688),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 2.0, 8.0, 0.9609),  # 1 − 2 (1 + 9)/2⁹
    ],
)
def test_the_interval_of_a_median(values: list[float], low: float, high: float, confidence: float) -> None:
    expected = {"median": statistics.median(values), "low": low, "high": high, "confidence": confidence}
    assert median_interval(values) == expected


def test_tokens_per_second_and_their_interval() -> None:
    row = timing([2.0, 1.0, 4.0], 8)
    assert (row["tokens_per_s"], row["low_tokens_per_s"], row["high_tokens_per_s"]) == (4.0, 2.0, 8.0)


def test_what_would_take_too_long_is_left_out_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("x", "tokens", ())
    budget = Budget(Setting(budget_s=10), report)
    assert budget.allows("square", 100, 2)
    budget.took("square", 100, 1.0)
    budget.took("linear", 100, 1.0)
    assert budget.allows("square", 300, 2)
    assert not budget.allows("square", 400, 2, tokens=400)
    assert not budget.allows("square", 100, 2)  # and stays out
    assert budget.allows("linear", 1000, 1)
    why = "about 16 s a run from here on, more than 10 s"
    assert report.rows == [{"contender": "square", "skipped": why, "tokens": 400}]
    assert why in capsys.readouterr().err


def test_lengths_are_powers_of_four_and_the_longest() -> None:
    assert Setting().lengths() == [1024, 4096, 16_384, 65_536]
    assert Setting(max_tokens=1_000_000).lengths() == [1024, 4096, 16_384, 65_536, 262_144, 1_000_000]
    assert Setting(max_tokens=64).lengths() == [64]
    assert Setting(max_tokens=64).lengths(8) == [8, 32, 64]
    assert Setting(max_tokens=65_536, min_tokens=5000).lengths() == [16_384, 65_536]


def test_operations_are_counted() -> None:
    a = torch.randn(8, 16)
    assert flops_of(lambda: a @ a.T) == 2 * 8 * 16 * 8


@pytest.mark.skipif(sys.platform != "linux", reason="peaks can be set back on Linux only")
def test_memory_is_the_most_that_was_taken_meanwhile() -> None:
    def allocate(megabytes: int) -> None:
        torch.ones(megabytes * 250_000)

    allocate(100)  # an earlier, larger peak does not count
    found, _ = costs_of(lambda: allocate(40), "cpu")
    assert found is not None
    assert 38 < found < 60
    nothing, _ = costs_of(lambda: None, "cpu")
    assert nothing is not None
    assert nothing < 10


def test_the_machines_own_limits() -> None:
    peak = Peak.measure("cpu", 128, rounds=2)
    assert 1e7 < peak.flops_per_s < 1e15
    assert 1e6 < peak.bytes_per_s < 1e14
    assert has_room(1e3, "cpu")
    assert not has_room(1e18, "cpu")
