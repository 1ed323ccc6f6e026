"""BABILong's evaluation sets: bAbI facts in books, ready-made, and how their answers are scored.

Kuratov et al.: BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack (arXiv:2406.10149).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from ..hub import hub_rows
from .babi.stories import GIVERS
from .babi.world import OBJECTS
from .whereabouts import PLACES

HUB_ID = "RMT-team/babilong"
_SUFFIXES = (".jsonl", ".json", ".parquet")
_COLUMNS = ("input", "question", "target")
_YES_NO = ("no", "yes")

_LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), PLACES),
    "qa5": (*GIVERS, *OBJECTS),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), _YES_NO),
    "qa7": ("none", "one", "three", "two"),
    "qa8": (*OBJECTS, "nothing"),
    "qa10": ("maybe", *_YES_NO),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}


@dataclass(frozen=True, slots=True)
class LongSample:
    """A text with facts somewhere in it, a question, and the answer.

    Args:
        input: The text.
        question: What is asked after it.
        target: The right answer.
    """

    input: str
    question: str
    target: str


def task_labels(task: str) -> tuple[str, ...]:
    """The possible answers of a task, `qa1` … `qa20`, as BABILong lists them for its score.

    Raises:
        ConfigError: if there is no such task.

    Example:
        >>> task_labels("qa9")
        ('no', 'yes')
    """
    if task not in _LABELS:
        raise ConfigError(f"task={task!r} has no list of answers; BABILong has qa1 to qa20")
    return _LABELS[task]


def babilong_match(output: str, target: str, question: str, labels: Iterable[str]) -> bool:
    """BABILong's own score: of all possible answers, the first sentence of the output names the target and no other.

    Answers that occur in the question do not count, for they are never the target. A target with commas, such as
    "apple,milk", needs all its parts and nothing else. The rule, with its match of substrings, is that of `compare_answers` in
    https://github.com/booydar/babilong/blob/main/babilong/metrics.py, so that figures compare.

    Args:
        output: What the model wrote.
        target: The right answer.
        question: What it was asked.
        labels: The possible answers of the task, see `task_labels`.

    Example:
        >>> babilong_match("She is in the garden. Or the office?", "garden", "Where is Mary?", task_labels("qa1"))
        True
        >>> babilong_match("garden or office", "garden", "Where is Mary?", task_labels("qa1"))
        False
    """
    first = output.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    target, asked = target.lower(), question.lower()
    named = {label for label in (label.lower() for label in labels) if label in first and label not in asked}
    wanted = set(target.split(",")) if "," in target and len(target) > 3 else {target}
    return named == wanted


def iter_babilong(task: str, length: str, source: str = HUB_ID) -> Iterator[LongSample]:
    """The samples of one task at one length, one at a time: at 10M tokens a sample is 40 MB.

    Args:
        task: `qa1` … `qa20`.
        length: Such as "0k", "4k", "128k", "1M", "10M".
        source: A dataset of the hub, or a copy: a file (.jsonl, .json, .parquet) with the columns input, question and
            target, or a folder with files `TASK/LENGTH.jsonl`.

    Raises:
        InputError: if the source is missing, or a row is not in the format; the message has file and row.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = _find(path, task, length)
    if path.is_file():
        rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
        return _samples(path.name, rows)
    return _samples(f"{source} {length} {task}", hub_rows("source", source, length, split=task, streaming=True))


def _find(folder: Path, task: str, length: str) -> Path:
    for middle in ("", "data/"):
        for suffix in _SUFFIXES:
            path = folder / f"{middle}{task}/{length}{suffix}"
            if path.is_file():
                return path
    raise InputError(
        f"source {folder}: has no {task}/{length} with one of the endings {', '.join(_SUFFIXES)}; "
        "give the file itself, or another task or length"
    )


def _samples(name: str, rows: Iterable[Any]) -> Iterator[LongSample]:
    for index, row in enumerate(rows, start=1):
        missing = [c for c in _COLUMNS if not isinstance(row, Mapping) or not isinstance(row.get(c), str)]
        if missing:
            raise InputError(
                f"{name}, row {index}: expected text in the columns {', '.join(_COLUMNS)}; no {missing[0]}"
            )
        yield LongSample(row["input"], row["question"], row["target"])


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            start = file.read(1)
            file.seek(0)
            if start == "[":
                yield from json.load(file)
                return
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: is not JSON, nor one JSON object a line ({error}); give a copy of {HUB_ID}"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{path}: to read parquet, `pip install pyarrow`; or give a .jsonl copy") from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1, columns=list(_COLUMNS)):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not parquet ({error}); give a copy of {HUB_ID}") from error
