"""What the scored tokens say: perplexity over all, by position in the segment, by history, by document.

A perplexity is exp of a mean loss over tokens. Perplexities are never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .perplexity_plan import Plan
from .perplexity_store import Block

By = Literal["all", "position", "position_with_history", "history", "document"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Args:
        by: "position": tokens whose predictor stands in a range of places in its segment (or window); with history: only
            those with at least one segment before; "history": those with a range of numbers of segments before;
            "document": those of one.
        group: The range, such as "4–7", or the document's name.
        first: The first number of the range, or the document's.
        n: Scored tokens.
        nll: Their mean loss, natural.
        perplexity: exp of it.
    """

    by: By
    group: str
    first: int
    n: int
    nll: float
    perplexity: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Summary:
    """All scored tokens together.

    Args:
        documents: Looked at.
        scored_tokens: n.
        unscored_tokens: Read and not scored: the first of every document, where no beginning-of-text token is before it.
        words: Of the text, between white space.
        bytes: Of the text in UTF-8.
        nll: The mean loss, natural.
        perplexity: exp of it.
        word_perplexity: exp of the sum of the losses over the number of words; None where there is none, or it is too large.
        bits_per_byte: The sum of the losses in bits over the number of bytes; None where there is none.
        scored_sha256: Names the set of scored tokens.
    """

    documents: int
    scored_tokens: int
    unscored_tokens: int
    words: int
    bytes: int
    nll: float
    perplexity: float | None
    word_perplexity: float | None
    bits_per_byte: float | None
    scored_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Sums:
    """Sums and counts of losses by a small whole number."""

    def __init__(self, size: int = 0) -> None:
        self.nll, self.count = np.zeros(size), np.zeros(size, np.int64)

    def add(self, groups: NDArray[Any], nll: NDArray[np.float64]) -> None:
        size = max(len(self.nll), int(groups.max(initial=-1)) + 1)
        for name, weights in (("nll", nll), ("count", None)):
            before = getattr(self, name)
            after = np.bincount(groups, weights, size)
            after[: len(before)] += before
            setattr(self, name, after)


def tabulate(blocks: Iterable[Block], plan: Plan, width: int) -> tuple[Summary, list[Line]]:
    """The summary and the table of all scored tokens.

    Args:
        blocks: The tokens, a part at a time.
        plan: What they are of.
        width: Tokens of a segment, or of a window.

    Raises:
        InputError: if they are not as many as were planned.
    """
    position, with_history, history, document = _Sums(), _Sums(), _Sums(), _Sums(len(plan.documents))
    for block in blocks:
        nll = block["nll"].astype(np.float64)
        places, folded = doubling(block["position"]), block["history"]
        position.add(places, nll)
        with_history.add(places[folded > 0], nll[folded > 0])
        history.add(doubling(folded), nll)
        document.add(block["document"], nll)
    total, count = float(document.nll.sum()), int(document.count.sum())
    if count != plan.num_scored:
        raise InputError(f"{count:,} losses are there, of {plan.num_scored:,}: some were lost; give another --out")
    words, size = (sum(getattr(d, name) for d in plan.documents) for name in ("num_words", "num_bytes"))
    summary = Summary(
        documents=len(plan.documents),
        scored_tokens=count,
        unscored_tokens=plan.num_unscored,
        words=words,
        bytes=size,
        nll=total / count,
        perplexity=perplexity(total / count),
        word_perplexity=perplexity(total / words) if words else None,
        bits_per_byte=total / math.log(2) / size if size else None,
        scored_sha256=plan.scored_sha256,
    )
    lines = [_line("all", "", 0, total, count)]
    kinds: tuple[tuple[By, _Sums], ...] = (
        ("position", position),
        ("position_with_history", with_history),
        ("history", history),
    )
    for by, sums in kinds:
        last = None if by == "history" else width - 1
        lines += [
            _line(by, _range(group, last), *row)
            for group, row in enumerate(
                zip(map(_first, range(len(sums.nll))), sums.nll.tolist(), sums.count.tolist(), strict=True)
            )
        ]
    lines += [
        _line("document", planned.name, planned.number, nll, n)
        for planned, nll, n in zip(plan.documents, document.nll.tolist(), document.count.tolist(), strict=True)
    ]
    return summary, [line for line in lines if line.n]


def doubling(values: NDArray[Any]) -> NDArray[np.int64]:
    """The range that a number is in: 0, 1, 2–3, 4–7, 8–15, and so on.

    Example:
        >>> doubling(np.array([0, 1, 2, 3, 4, 8])).tolist()
        [0, 1, 2, 2, 3, 4]
    """
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def perplexity(nll: float) -> float | None:
    """The exponential of a mean loss; None where it is too large for a number.

    Example:
        >>> perplexity(0.0), perplexity(1e6)
        (1.0, None)
    """
    return math.exp(nll) if nll < 700 else None


def _line(by: By, group: str, first: int, total: float, count: int) -> Line:
    mean = total / max(1, count)
    return Line(by, group, first, count, mean, perplexity(mean))


def _first(group: int) -> int:
    return 0 if group == 0 else 2 ** (group - 1)


def _range(group: int, last: int | None) -> str:
    low, high = _first(group), _first(group + 1) - 1
    high = high if last is None else min(high, last)
    return str(low) if low >= high else f"{low}–{high}"
