"""Rows of a batch shared out over threads: in order, not where something holds for one thread only, errors on the way back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from recurrent_memory.inference import row_threads
from recurrent_memory.inference.row_threads import fold_in_pieces

Fold = Callable[[slice], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(row_threads, "CPU_POSITIONS", 20)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers_and_calls() -> tuple[Fold, list[tuple[int, bool, int]]]:
    calls: list[tuple[int, bool, int]] = []

    def fold(rows: slice) -> dict[str, Tensor]:
        numbers = torch.arange(100)[rows]
        is_main = threading.current_thread() is threading.main_thread()
        calls.append((len(numbers), is_main, torch.get_num_threads()))
        return {"memory": numbers}

    return fold, calls


@torch.no_grad()
def test_pieces_are_computed_by_threads_that_share_no_product_and_come_back_in_order() -> None:
    fold, calls = numbers_and_calls()
    assert fold_in_pieces(fold, 7, 10)["memory"].tolist() == list(range(7))
    assert sorted(calls, reverse=True) == [(2, False, 1)] * 3 + [(1, False, 1)]
    assert torch.get_num_threads() == 2
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [2], "threads that begin later are as before"


@pytest.mark.parametrize(("batch", "positions"), [(1, 1000), (3, 10), (1, 10)])
@torch.no_grad()
def test_few_rows_are_computed_at_once(batch: int, positions: int) -> None:
    fold, calls = numbers_and_calls()
    assert fold_in_pieces(fold, batch, positions)["memory"].tolist() == list(range(batch))
    assert calls == [(batch, True, 2)]


@torch.no_grad()
def test_one_thread_computes_a_few_at_a_time() -> None:
    fold, calls = numbers_and_calls()
    assert fold_in_pieces(fold, 5, 10, threads=1)["memory"].tolist() == list(range(5))
    assert [count for count, _, _ in calls] == [2, 2, 1]
    assert all(is_main for _, is_main, _ in calls)


def test_what_holds_for_one_thread_is_not_left_behind() -> None:
    fold, calls = numbers_and_calls()
    fold_in_pieces(fold, 7, 10)  # with gradients
    with torch.no_grad(), FlopCounterMode(display=False):
        fold_in_pieces(fold, 7, 10)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fold_in_pieces(fold, 7, 10)
    assert calls == [(7, True, 2)] * 3
    with torch.inference_mode():
        assert fold_in_pieces(lambda rows: {"memory": torch.ones(7)[rows]}, 7, 10)["memory"].is_inference()


@torch.no_grad()
def test_an_error_in_a_thread_is_raised() -> None:
    def fold(rows: slice) -> dict[str, Tensor]:
        if rows.start == 4:
            raise ValueError("row 4")
        return {"memory": torch.zeros(2)}

    with pytest.raises(ValueError, match="row 4"):
        fold_in_pieces(fold, 7, 10)
