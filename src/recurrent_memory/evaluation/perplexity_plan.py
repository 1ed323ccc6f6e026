"""Which tokens are scored: known before the model reads any, so that every way of reading them scores the same.

A document's first token has nothing before it that could predict it, and is not scored; every other one is, once.
With a beginning-of-text token before every document, the first token is scored too.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ConfigError, InputError
from ..inference.detokenize import IncrementalDecoder
from ..inference.documents import Document, Documents
from ..inference.token_feed import TokenFeed, as_ids
from ..inference.tokenize_stream import TokenStreamer


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tokens of some documents are scored.

    Args:
        max_tokens: Of all scored tokens; documents are taken in order, the last one up to its share.
        max_document_tokens: Scored tokens of each document, from its start.
        limit_documents: How many documents are looked at.
        bos: Whether the tokenizer's beginning-of-text token is put before every document.

    Raises:
        ConfigError: if a limit is below 1.
    """

    max_tokens: int | None = None
    limit_documents: int | None = None
    bos: bool = False
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "limit_documents", "max_document_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or left out")


@dataclass(frozen=True, slots=True)
class Planned:
    """A document to be scored.

    Args:
        number: Its place among the documents, from 0.
        name: Its name.
        num_tokens: That are read, the beginning-of-text token included; all but the first are scored.
        num_words: Between white space, of the text that is read.
        num_bytes: Of that text in UTF-8.
    """

    number: int
    name: str
    num_tokens: int
    num_words: int
    num_bytes: int

    @property
    def num_scored(self) -> int:
        """Tokens that something predicts."""
        return max(0, self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """All documents, and what names the tokens that are scored.

    Args:
        documents: In order.
        scored_sha256: Of every document's number, its token ids, and which of them are scored.
        num_unscored: Tokens of the text that are read and not scored.
    """

    documents: tuple[Planned, ...]
    scored_sha256: str
    num_unscored: int

    @property
    def num_scored(self) -> int:
        """Over all documents."""
        return sum(document.num_scored for document in self.documents)


class PlannedTokens:
    """The tokens of documents, made on the way; they are gone through twice, once for the plan and once to be scored.

    Args:
        documents: The texts.
        tokenizer: Of the model.
        choice: What of them is scored.

    Raises:
        ConfigError: if a beginning-of-text token is wanted and the tokenizer has none.
        InputError: if nothing is left to score.
    """

    def __init__(self, documents: Documents, tokenizer: Any, choice: Choice) -> None:
        if choice.bos and tokenizer.bos_token_id is None:
            raise ConfigError("--bos: the tokenizer has no beginning-of-text token; leave it out")
        self.documents, self.choice = documents, choice
        self._tokenizer, self._streamer = tokenizer, TokenStreamer(tokenizer)
        self._prefix: list[int] = [int(tokenizer.bos_token_id)] if choice.bos else []
        self.plan = self._make_plan()

    def feeds(self, wanted: Callable[[Planned], bool]) -> Iterator[tuple[Planned, TokenFeed]]:
        """The tokens of the documents that are wanted."""
        for planned, document in zip(self.plan.documents, self._texts(), strict=False):
            if planned.num_scored and wanted(planned):
                yield planned, TokenFeed(self._blocks(document.chunks()))

    def _texts(self) -> Iterator[Document]:
        return itertools.islice(iter(self.documents), self.choice.limit_documents)

    def _blocks(self, chunks: Iterator[str]) -> Iterator[Int[Tensor, " T"]]:
        if self._prefix:
            yield torch.tensor(self._prefix)
        yield from map(as_ids, self._streamer.stream(chunks))

    def _make_plan(self) -> Plan:
        left, digest = self.choice.max_tokens, hashlib.sha256()
        found: list[Planned] = []
        for number, document in enumerate(self._texts()):
            limits = [limit for limit in (left, self.choice.max_document_tokens) if limit is not None]
            planned, ids_sha256 = self._look_at(number, document, min(limits, default=None))
            digest.update(f"{number} {ids_sha256}\n".encode())
            found.append(planned)
            if left is not None:
                left -= planned.num_scored
                if left == 0:
                    break
        if not found:
            raise InputError(f"--text {self.documents.name}: holds no document; give a source with text in it")
        begun = 0 if self.choice.bos else sum(document.num_tokens > 0 for document in found)
        plan = Plan(tuple(found), digest.hexdigest(), begun)
        if not plan.num_scored:
            raise InputError(
                f"--text {self.documents.name}: none of its {len(found)} documents has a token that another one stands "
                "before, so there is nothing to score; give longer text"
            )
        return plan

    def _look_at(self, number: int, document: Document, left: int | None) -> tuple[Planned, str]:
        """Go through a document once, no further than needed."""
        counted = TextCount()
        feed = TokenFeed(self._blocks(counted.through(document.chunks())))
        most = None if left is None else left + 1
        digest, count = hashlib.sha256(), 0
        while ids := feed.take(4096 if most is None else min(4096, most - count)).tolist():
            scored = np.ones(len(ids), dtype="<i8")
            scored[0] = count > 0
            digest.update(np.stack([np.asarray(ids, dtype="<i8"), scored], 1).tobytes())
            count += len(ids)
        if most is not None and feed.available(1):
            counted = self._count_first(document, count)
        return Planned(number, document.name, count, counted.num_words, counted.num_bytes), digest.hexdigest()

    def _count_first(self, document: Document, num_tokens: int) -> TextCount:
        """Count the text of a document's first tokens only."""
        counted, decoder = TextCount(), IncrementalDecoder(self._tokenizer)
        feed = TokenFeed(self._blocks(document.chunks()))
        feed.take(len(self._prefix))
        left = num_tokens - len(self._prefix)
        while left and (ids := feed.take(min(left, 4096)).tolist()):
            left -= len(ids)
            for token in ids:
                counted.add(decoder.push(token))
        counted.add(decoder.flush())
        return counted


class TextCount:
    """Words and bytes of a text that comes in chunks, cut anywhere."""

    def __init__(self) -> None:
        self.num_words = self.num_bytes = 0
        self._in_word = False

    def add(self, chunk: str) -> None:
        """Count a chunk."""
        if chunk:
            self.num_words += len(chunk.split()) - (self._in_word and not chunk[0].isspace())
            self._in_word = not chunk[-1].isspace()
            self.num_bytes += len(chunk.encode("utf-8", "surrogatepass"))

    def through(self, chunks: Iterator[str]) -> Iterator[str]:
        """The same chunks, counted."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk
