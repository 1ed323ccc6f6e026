"""The last words of passages in a folder: every score, and the table of them; it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones.int8 import compute_dtype
from ..errors import ConfigError, InputError
from ..inference.documents import Documents
from ..inference.peak_memory import peak_rss_mb
from .folder import RESULTS, ROWS, TABLE, open_folder
from .intervals import bootstrap, wilson
from .last_word import Passage, WordReader, split_passage
from .provenance import machine
from .tables import write_csv, write_json

GROUP = 128


@dataclass(frozen=True, slots=True)
class WordRow:
    """One passage, read in one way.

    Args:
        passage: Its number, from 0.
        kind: `memory`, `reset` or `window`.
        segments_before: Segments of the context before the one in which the word is predicted.
        log_probability: Of the word, natural.
        right: Whether every token of it was the likeliest.
    """

    passage: int
    kind: str
    segments_before: int
    log_probability: float
    right: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Args:
        kind: See `WordRow`.
        segments_before: The passages with so many; "all" of them.
        n: Passages.
        accuracy: The share whose last word was the likeliest.
        low: The lower end of its 95 % Wilson interval.
        high: The upper end.
        perplexity: Of the last word: exp of its mean negative log-probability.
    """

    kind: str
    segments_before: str
    n: int
    accuracy: float
    low: float
    high: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Gain:
    """What one way of reading gains on another, passage by passage; 95 % intervals by paired bootstrap over passages.

    Args:
        of: The one.
        against: The other.
        accuracy: The difference of the accuracies.
        accuracy_low: The lower end of its interval.
        accuracy_high: The upper end.
        nats: The difference of the mean log-probabilities.
        nats_low: The lower end of its interval.
        nats_high: The upper end.
    """

    of: str
    against: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    nats: float
    nats_low: float
    nats_high: float


@dataclass(frozen=True, slots=True)
class LastWordResult:
    """What an evaluation found.

    Args:
        lines: The table.
        gains: Comparisons of two ways to read the same passages.
        elapsed_s: Of this run.
        peak_rss_mb: The most memory that the process has had, in 10^6 bytes.
    """

    lines: list[Line]
    gains: list[Gain]
    elapsed_s: float
    peak_rss_mb: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate_last_words(
    reader: WordReader,
    tokenizer: Any,
    documents: Documents,
    out: str | Path,
    *,
    limit: int | None = None,
    lanes: int = 32,
    resume: bool = False,
    against: str | Path | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> LastWordResult:
    """Predict the last word of every passage, and keep the scores in a folder.

    Args:
        reader: How a model reads: `MemoryWords`, or `WindowWords`.
        tokenizer: Its tokenizer.
        documents: The passages.
        out: The folder: `evaluation.json`, `rows/`, `accuracy.csv`, `results.json`.
        limit: The first passages only.
        lanes: Passages read side by side.
        resume: Whether to go on with what is in the folder.
        against: A finished evaluation of the same passages, to compare with.
        tell: Called with the passages that are done, and all.

    Raises:
        ConfigError: if a number is below 1.
        InputError: if the passages cannot be read, or the folder, or the one to compare with, is of other ones.
        OutputError: if the folder holds an evaluation already and `resume` is not set, or cannot be written.
    """
    for name, value in (("limit", limit), ("lanes", lanes)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    started, folder = time.monotonic(), Path(out)
    passages = [
        split_passage("".join(document.chunks()), tokenizer, document.name) for document in islice(documents, limit)
    ]
    if not passages:
        raise InputError(f"{documents.name}: there are no passages in it; give a .jsonl file, a folder or a hub id")
    names = _sha256(passages)
    settings = {
        "task": "lambada",
        **reader.settings,
        "dtype": compute_dtype(reader.model),
        "text": documents.name,
        "passages": len(passages),
        "passages_sha256": names,
    }
    other = _rows_of(Path(against), names) if against is not None else []
    rows: list[WordRow] = []
    with open_folder(folder, settings, resume=resume):
        for first in range(0, len(passages), GROUP):
            kept = folder / ROWS / f"{first:06d}.json"
            if not kept.is_file():
                write_json([asdict(row) for row in _read(reader, passages[first : first + GROUP], first, lanes)], kept)
            rows += _load(kept)
            if tell is not None:
                tell(min(first + GROUP, len(passages)), len(passages))
        lines = _tabulate(rows, reader.kinds)
        gains = [_gain(rows, "memory", rows, "reset")] if "reset" in reader.kinds else []
        gains += [
            _gain(rows, kind, other, theirs, f" of {against}")
            for kind in reader.kinds[:1]
            for theirs in dict.fromkeys(row.kind for row in other)
        ]
        result = LastWordResult(lines, gains, round(time.monotonic() - started, 1), round(peak_rss_mb(), 1))
        write_csv(Line, lines, folder / TABLE)
        made = {"state_bytes": reader.state_bytes, **machine()}
        write_json({**settings, **result.to_dict(), **made}, folder / RESULTS)
        return result


def _read(reader: WordReader, passages: Sequence[Passage], first: int, lanes: int) -> list[WordRow]:
    """A group; passages of about one length are read together, so that little is padded."""
    order = sorted(range(len(passages)), key=lambda index: len(passages[index].context))
    rows: list[WordRow] = []
    for start in range(0, len(order), lanes):
        chosen = order[start : start + lanes]
        for index, scores in zip(chosen, reader.scores([passages[index] for index in chosen]), strict=True):
            before = reader.segments_before(passages[index])
            rows += [
                WordRow(first + index, kind, before, found.log_probability, found.is_greedy)
                for kind, found in zip(reader.kinds, scores, strict=True)
            ]
    return sorted(rows, key=lambda row: row.passage)


def _tabulate(rows: Sequence[WordRow], kinds: Sequence[str]) -> list[Line]:
    lines: list[Line] = []
    for kind in kinds:
        mine = [row for row in rows if row.kind == kind]
        counts = sorted({row.segments_before for row in mine})
        groups = [("all", mine)]
        if len(counts) > 1:
            groups += [(str(count), [row for row in mine if row.segments_before == count]) for count in counts]
        for name, group in groups:
            hits = sum(row.right for row in group)
            low, high = wilson(hits, len(group))
            mean = sum(row.log_probability for row in group) / len(group)
            lines.append(Line(kind, name, len(group), hits / len(group), low, high, _exp(-mean)))
    return lines


def _gain(
    rows: Sequence[WordRow], kind: str, others: Sequence[WordRow], other_kind: str, suffix: str = "", seed: int = 0
) -> Gain:
    mine, theirs = (
        np.array([[row.right, row.log_probability] for row in group if row.kind == name], dtype=np.float64)
        for group, name in ((rows, kind), (others, other_kind))
    )
    difference = mine - theirs
    ones = np.ones(len(difference), dtype=np.int64)
    (low_a, low_n), (high_a, high_n) = (end.tolist() for end in bootstrap(difference, ones, seed=seed))
    accuracy, nats = difference.mean(0).tolist()
    return Gain(kind, f"{other_kind}{suffix}", accuracy, low_a, high_a, nats, low_n, high_n)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _sha256(passages: Sequence[Passage]) -> str:
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps([passage.context, passage.word]).encode())
    return digest.hexdigest()


def _load(path: Path) -> list[WordRow]:
    try:
        return [WordRow(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete it, and it is read again with --resume") from error


def _rows_of(folder: Path, passages_sha256: str) -> list[WordRow]:
    """The scores of a finished evaluation of the same passages."""
    try:
        settings = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        found = settings["passages_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: holds no finished evaluation of last words; finish it with --resume") from error
    if found != passages_sha256:
        raise InputError(f"{folder}: is of other passages, or other tokens; evaluate both on the same")
    return [row for path in sorted((folder / ROWS).glob("*.json")) for row in _load(path)]
