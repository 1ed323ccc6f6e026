"""Token ids on their way to the model: made in the background, taken in pieces of any size, never all held at once."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice
from numbers import Integral
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError

Item = TypeVar("Item")
IDS_AT_A_TIME = 4096


class TokenFeed:
    """One text as a row of token ids, of which the next ones can be taken.

    Args:
        blocks: Consecutive pieces of the text, of any length.

    Example:
        >>> feed = TokenFeed(iter([torch.tensor([1, 2]), torch.tensor([3])]))
        >>> feed.take(2).tolist(), feed.take(2).tolist(), feed.take(2).tolist()
        ([1, 2], [3], [])
    """

    def __init__(self, blocks: Iterator[Int[Tensor, " T"]]) -> None:
        self._blocks = blocks
        self._held: deque[Tensor] = deque()
        self._count = 0

    def available(self, wanted: int) -> int:
        """How many tokens can be taken now, at least `wanted` unless the text ends before."""
        while self._count < wanted:
            block = next(self._blocks, None)
            if block is None:
                break
            if block.numel():
                self._held.append(block)
                self._count += block.numel()
        return self._count

    def take(self, count: int) -> Int[Tensor, " T"]:
        """The next `count` tokens; fewer only where the text ends."""
        missing = min(count, self.available(count))
        self._count -= missing
        parts: list[Tensor] = []
        while missing:
            block = self._held.popleft()
            if block.numel() > missing:
                self._held.appendleft(block[missing:])
                block = block[:missing]
            parts.append(block)
            missing -= block.numel()
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    def close(self) -> None:
        """Stop whatever makes the tokens."""
        if isinstance(self._blocks, Generator):
            self._blocks.close()


def id_blocks(items: Iterable[Any]) -> Iterator[Int[Tensor, " T"]]:
    """Blocks of token ids from ints, or from chunks of ints (lists, arrays, tensors).

    Raises:
        InputError: if an item is neither.
    """
    items = iter(items)
    for first in items:
        if isinstance(first, Integral) and not isinstance(first, bool):
            yield as_ids([first, *islice(items, IDS_AT_A_TIME - 1)])
        else:
            yield as_ids(first)


def as_ids(chunk: Any) -> Int[Tensor, " T"]:
    """A chunk of token ids: a list, an array or a tensor, of one axis (or of one row).

    Raises:
        InputError: if it is something else.
    """
    if isinstance(chunk, str | bytes):
        raise InputError(f"the text {chunk[:20]!r} among token ids; give text only, or token ids only")
    try:
        ids = torch.as_tensor(chunk)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"cannot read token ids from a {type(chunk).__name__} ({error}); give ints or chunks of ints"
        ) from error
    if not ids.numel():
        return torch.zeros(0, dtype=torch.long)
    if (
        ids.is_floating_point()
        or ids.is_complex()
        or ids.dtype == torch.bool
        or ids.numel() > max(ids.shape, default=1)
    ):
        raise InputError(
            f"cannot read token ids from {ids.dtype} of the shape {list(ids.shape)}; give whole numbers, one text at a time"
        )
    return ids.reshape(-1).cpu().long()


def without(blocks: Iterable[Int[Tensor, " T"]], special_ids: tuple[int, ...]) -> Iterator[Int[Tensor, " T"]]:
    """The blocks, less the ids that a model takes out of its input because its rows bring their own."""
    unwanted = torch.tensor(special_ids)
    return (block[~torch.isin(block, unwanted)] for block in blocks)


def prefetched(items: Iterator[Item], depth: int = 4) -> Generator[Item]:
    """The same items, made by a thread of its own, at most `depth` ahead.

    Exceptions come out where the item would have. Closing the generator stops the thread at its next item.
    """
    done = object()
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:  # also MemoryError and the like: they belong to the reader
            put((None, error))

    thread = threading.Thread(target=produce, name="tokenizer", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()


def peeked(items: Iterable[Item]) -> tuple[Item | None, Iterator[Item]]:
    """The first item, if there is one, and all of them."""
    iterator = iter(items)
    for first in iterator:
        return first, chain([first], iterator)
    return None, iter(())
