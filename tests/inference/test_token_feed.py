"""Token ids on their way: whatever they come from, in pieces of any size, made ahead by a thread that ends."""

import doctest
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from recurrent_memory.errors import InputError
from recurrent_memory.inference import token_feed
from recurrent_memory.inference.token_feed import TokenFeed, as_ids, id_blocks, peeked, prefetched, without


def feed_of(*blocks: list[int]) -> TokenFeed:
    return TokenFeed(iter([torch.tensor(block, dtype=torch.long) for block in blocks]))


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [2, 3, 2], [3, 0, 9]])
def test_pieces_of_any_size_are_the_whole(sizes: list[int]) -> None:
    feed = feed_of([1, 2, 3], [], [4], [5, 6, 7])
    pieces = [feed.take(size).tolist() for size in sizes]
    assert [token for piece in pieces for token in piece] == [1, 2, 3, 4, 5, 6, 7]
    assert feed.take(1).tolist() == []


def test_available_looks_no_further_than_asked() -> None:
    drawn: list[int] = []

    def blocks() -> Iterator[torch.Tensor]:
        for number in range(5):
            drawn.append(number)
            yield torch.tensor([number, number])

    feed = TokenFeed(blocks())
    assert feed.available(3) == 4
    assert drawn == [0, 1]
    assert feed.available(100) == 10


@pytest.mark.parametrize(
    "items",
    [
        [1, 2, 3, 4],
        [np.int64(1), 2, np.int32(3), 4],
        [[1, 2], [], [3, 4]],
        [(1, 2), [3], [4]],
        [torch.tensor([1, 2]), np.array([3, 4])],
        [torch.tensor([[1, 2, 3, 4]])],
    ],
)
def test_ids_of_every_form(items: list[Any]) -> None:
    blocks = list(id_blocks(iter(items)))
    assert torch.cat(blocks).tolist() == [1, 2, 3, 4]
    assert all(block.dtype == torch.long and block.ndim == 1 for block in blocks)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([0.5], "cannot read token ids from torch.float32 of the shape [1]; give whole numbers, one text at a time"),
        ([True], "cannot read token ids from torch.bool of the shape [1]; give whole numbers, one text at a time"),
        (
            [[1, 2], [3, 4]],
            "cannot read token ids from torch.int64 of the shape [2, 2]; give whole numbers, one text at a time",
        ),
        ("Mary", "the text 'Mary' among token ids; give text only, or token ids only"),
    ],
)
def test_what_is_no_ids(chunk: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        as_ids(chunk)
    assert str(error.value) == message


def test_what_is_not_a_number() -> None:
    with pytest.raises(InputError, match=r"^cannot read token ids from a list \(.*\); give ints or chunks of ints$"):
        list(id_blocks([1, None]))


def test_special_ids_are_left_out() -> None:
    assert [block.tolist() for block in without([torch.tensor([1, 2, 3]), torch.tensor([2])], (2, 9))] == [[1, 3], []]


def test_peeking_takes_nothing_away() -> None:
    first, items = peeked(iter("abc"))
    assert first == "a"
    assert list(items) == ["a", "b", "c"]
    assert peeked([])[0] is None


def number_of_threads() -> int:
    return sum(thread.name == "tokenizer" for thread in threading.enumerate())


def wait_until_no_thread_is_left() -> None:
    for _ in range(500):
        if not number_of_threads():
            return
        time.sleep(0.01)
    raise AssertionError("a thread is left")


def test_prefetching_keeps_order_and_ends() -> None:
    assert list(prefetched(iter(range(100)), depth=3)) == list(range(100))
    wait_until_no_thread_is_left()


def test_prefetching_runs_only_so_far_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    ahead = prefetched(items(), depth=2)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    time.sleep(0.05)
    assert len(made) <= 10 + 2 + 2  # in the queue, and in the hands of the thread
    ahead.close()
    wait_until_no_thread_is_left()


def test_an_error_comes_out_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise InputError("the file is damaged")

    ahead = prefetched(items())
    assert next(ahead) == 1
    with pytest.raises(InputError, match="the file is damaged"):
        next(ahead)
    wait_until_no_thread_is_left()


def test_closing_a_feed_ends_its_thread() -> None:
    feed = TokenFeed(prefetched(iter([torch.tensor([1])] * 1000)))
    assert feed.take(3).tolist() == [1, 1, 1]
    assert number_of_threads() == 1
    feed.close()
    wait_until_no_thread_is_left()


def test_the_example_in_the_docstring() -> None:
    result = doctest.testmod(token_feed, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
