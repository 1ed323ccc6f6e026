"""Two evaluations of the same tokens: the difference of their losses, with an interval.

Neighbouring tokens are not independent, so blocks of 4,096 scored tokens are drawn, the same ones for both (paired
bootstrap; Efron & Tibshirani 1993, section 8.6).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from .folder import RESULTS
from .intervals import bootstrap
from .perplexity_store import read_tokens

TOKENS_PER_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Comparison:
    """What b gains or loses against a, on the same tokens.

    Args:
        scored_tokens: n.
        blocks: That were drawn from; below 2 there is no interval.
        nll_a: The mean loss of a.
        nll_b: The mean loss of b.
        difference: `nll_b − nll_a`; below 0, b is better.
        low: The lower end of its 95 % interval.
        high: The upper end.
        ratio: The perplexity of b over that of a, exp of the difference.
        ratio_low: The lower end of its interval.
        ratio_high: The upper end.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    scored_tokens: int
    blocks: int
    nll_a: float
    nll_b: float
    difference: float
    low: float | None
    high: float | None
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


Folders = str | Path | Sequence[str | Path]


def compare(
    folder_a: Folders,
    folder_b: Folders,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    tokens_per_block: int = TOKENS_PER_BLOCK,
) -> Comparison:
    """Compare two finished evaluations.

    Args:
        folder_a: One, such as that without memory; several, such as those of some seeds: their mean loss at each token.
        folder_b: The other, or the others.
        seed: Of the bootstrap.
        resamples: How often blocks are drawn.
        tokens_per_block: Scored tokens in a block.

    Raises:
        InputError: if they are not of the same scored tokens, or one is not finished or damaged.
        ConfigError: if a number is below 1.

    Example:
        >>> compare("results/reset", "results/memory").ratio
        0.97
    """
    for name, value in (("resamples", resamples), ("tokens_per_block", tokens_per_block)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    sides = [[folder] if isinstance(folder, str | Path) else list(folder) for folder in (folder_a, folder_b)]
    if not all(sides):
        raise ConfigError("there is nothing to compare with; give at least one evaluation for each side")
    first = sides[0][0]
    first_set = scored_sha256(first)
    for folder in (folder for side in sides for folder in side):
        if (its_set := scored_sha256(folder)) != first_set:
            raise InputError(
                f"{first} and {folder} did not score the same tokens ({first_set[:12]}… and {its_set[:12]}…); evaluate both on "
                "the same text with the same tokenizer, --max-tokens, --limit-documents and --bos"
            )
    (a, counts), (b, _) = (_mean_sums(side, first, tokens_per_block) for side in sides)
    total = int(counts.sum())
    difference = float((b - a).sum() / total)
    low = high = None
    if len(counts) > 1:
        ends = bootstrap((b - a)[:, None], counts, seed=seed, resamples=resamples)
        low, high = (float(end[0]) for end in ends)
    return Comparison(
        scored_tokens=total,
        blocks=len(counts),
        nll_a=float(a.sum() / total),
        nll_b=float(b.sum() / total),
        difference=difference,
        low=low,
        high=high,
        ratio=math.exp(difference),
        ratio_low=None if low is None else math.exp(low),
        ratio_high=None if high is None else math.exp(high),
        resamples=resamples,
        seed=seed,
    )


def _mean_sums(
    folders: Sequence[str | Path], first: str | Path, tokens_per_block: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The same of several evaluations, their mean."""
    expected = _block_sums(first, tokens_per_block)[1]
    sums: list[NDArray[np.float64]] = []
    for folder in folders:
        its_sums, counts = _block_sums(folder, tokens_per_block)
        if not np.array_equal(counts, expected):
            raise InputError(f"{folder}: has another number of losses than {first}; one of them is damaged")
        sums.append(its_sums)
    return np.mean(sums, 0), expected


def _block_sums(folder: str | Path, tokens_per_block: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sum of the losses of each block, and the number of its tokens; the last block may be shorter."""
    sums: list[NDArray[np.float64]] = []
    counts: list[NDArray[np.int64]] = []
    for nll in _in_whole_blocks(folder, tokens_per_block):
        starts = np.arange(0, len(nll), tokens_per_block)
        sums.append(np.add.reduceat(nll, starts))
        counts.append(np.diff(np.append(starts, len(nll))))
    return np.concatenate(sums), np.concatenate(counts)


def _in_whole_blocks(folder: str | Path, tokens_per_block: int) -> Iterator[NDArray[np.float64]]:
    rest = np.zeros(0)
    for block in read_tokens(folder):
        nll = np.concatenate([rest, block["nll"].astype(np.float64)])
        whole = len(nll) // tokens_per_block * tokens_per_block
        if whole:
            yield nll[:whole]
        rest = nll[whole:]
    if len(rest):
        yield rest


def scored_sha256(folder: str | Path) -> str:
    """What names the scored tokens of a finished evaluation.

    Raises:
        InputError: if there is none in the folder.
    """
    path = Path(folder) / RESULTS
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["scored_sha256"])
    except FileNotFoundError as error:
        raise InputError(f"{folder}: holds no finished evaluation of a text; finish it with --resume") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the summary of an evaluation of a text ({error!r})") from error
