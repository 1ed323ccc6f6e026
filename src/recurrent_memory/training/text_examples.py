"""Examples of language modelling: runs of consecutive tokens of one document, every token predicted from those before it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..forward import IGNORE
from ..inference.documents import open_documents
from ..inference.tokenize_stream import TokenStreamer
from .examples import Example


@dataclass(frozen=True)
class TextExamples:
    """Draws runs of text; see `SegmentedExamples`.

    A run is n·S consecutive tokens of one document, n being the number of segments asked for: documents never run into
    each other. Every place that a run can begin at is as likely as every other. A document that is shorter is one run, and
    its last segment may be short.

    The first token of a run has nothing before it and is not predicted; every other one is, the first of a segment from
    the last position of the segment before.

    Args:
        documents: `[T]` token ids of each; those of fewer than two tokens are passed over.
        segment_length: S.
        loss_from_segment: k, from 1: only predictions made in segment k and later count. In a run of fewer segments, those
            of the last one.

    Raises:
        InputError: if no document has two tokens.

    Example:
        >>> examples = TextExamples([np.arange(100)], segment_length=4)
        >>> examples.draw(random.Random(0), num_segments=2)["input_ids"]
        [49, 50, 51, 52, 53, 54, 55, 56]
    """

    documents: Sequence[NDArray[np.integer[Any]]]
    segment_length: int
    loss_from_segment: int = 1

    def __post_init__(self) -> None:
        kept = tuple(document for document in self.documents if len(document) > 1)
        if not kept:
            raise InputError(
                f"none of the {len(self.documents)} documents has a token that another one stands before, so there is "
                "nothing to learn; give longer text"
            )
        object.__setattr__(self, "documents", kept)

    @property
    def num_tokens(self) -> int:
        """In all documents."""
        return sum(map(len, self.documents))

    def draw(self, rng: random.Random, num_segments: int) -> Example:
        """A run; where it begins comes from `rng`."""
        length = self.segment_length * num_segments
        lengths = np.fromiter(map(len, self.documents), dtype=np.int64)
        num_starts = np.maximum(lengths - length, 0) + 1
        ends = np.cumsum(num_starts)
        place = rng.randrange(int(ends[-1]))
        document = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[document] - num_starts[document])
        ids: list[int] = self.documents[document][start : start + length].tolist()
        return {"input_ids": ids, "labels": self._labels(ids)}

    def _labels(self, ids: list[int]) -> list[int]:
        predicting = -(-(len(ids) - 1) // self.segment_length)  # segments in which something is predicted
        skipped = (min(self.loss_from_segment, predicting) - 1) * self.segment_length + 1
        return [IGNORE] * skipped + ids[skipped:]


def load_token_documents(
    sources: Sequence[str],
    split: str,
    tokenizer: Any,
    *,
    what: str,
    join: bool = False,
    max_tokens: int = 100_000_000,
) -> list[NDArray[np.int32]]:
    """Tokenize texts; 4 bytes a token are kept.

    Args:
        sources: Files, folders, or ids of datasets on the hub; see `open_documents`.
        split: Of datasets on the hub.
        tokenizer: The model's.
        what: The setting that names the sources, for errors.
        join: Whether all documents of a source are one text, as the lines of WikiText are.
        max_tokens: Documents are taken in order up to so many tokens, the last one up to its share.

    Raises:
        InputError: if there is no source, or one is missing, empty or not text.
    """
    if not sources:
        raise InputError(f"{what} is empty: name a text, such as {what}=path/to/books (a file, a folder or a hub id)")
    streamer = TokenStreamer(tokenizer)
    found: list[NDArray[np.int32]] = []
    left = max_tokens
    for source in sources:
        documents = open_documents(source, split, what)
        for document in documents.joined() if join else documents:
            if left <= 0:
                return found
            ids = _first_ids(streamer.stream(document.chunks()), left)
            left -= len(ids)
            found.append(ids)
    return found


def _first_ids(blocks: Iterable[list[int]], limit: int) -> NDArray[np.int32]:
    parts: list[NDArray[np.int32]] = []
    count = 0
    for block in blocks:
        parts.append(np.asarray(block, dtype=np.int32))
        count += len(block)
        if count >= limit:
            break
    return np.concatenate(parts)[:limit] if parts else np.zeros(0, dtype=np.int32)
