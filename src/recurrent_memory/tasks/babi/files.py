"""The published files of the twenty bAbI tasks.

A line is `number sentence`, or `number question<TAB>answer<TAB>numbers of the supporting lines`; number 1 begins a story.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...hub import hub_rows
from ..base import Placement, Sample

_LINE = re.compile(r"(\d+) (\S.*)")
_NUMBERS = re.compile(r"\d+( \d+)*")


@dataclass(frozen=True)
class BabiFileTask:
    """A bAbI task from its files.

    Args:
        name: The task.
        samples: All samples, in the order of the file.

    Example:
        >>> task = BabiFileTask("qa1", (Sample(("Mary went to the garden.",), "Where is Mary?", "garden", (0,)),))
        >>> task.draw(random.Random(0)).answer
        'garden'
    """

    name: str
    samples: tuple[Sample, ...]
    answers: tuple[str, ...] | None = field(init=False)
    placement: Placement = "anywhere"

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(sorted({sample.answer for sample in self.samples})))

    def draw(self, rng: random.Random) -> Sample:
        """One of the samples, with the possible answers; for each of them once, go through `samples`."""
        sample = rng.choice(self.samples)
        return Sample(sample.facts, sample.question, sample.answer, sample.supporting, self.answers)


def load_babi_samples(name: str, source: str, split: str = "test") -> tuple[Sample, ...]:
    """All samples of a task, one for each question; facts are the sentences before it, without the other questions.

    Args:
        name: `qa1` … `qa20`.
        source: A folder with files such as `qa1_single-supporting-fact_test.txt`, one such file, or a dataset of the
            hub with the columns of `facebook/babi_qa`.
        split: `train` or `test`.

    Raises:
        InputError: if the source is missing or is not in the format; the message has file and line.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return parse_babi(path.name, _read(path).splitlines())
    if path.is_dir():
        found = sorted(path.glob(f"{name}_*_{split}.txt"))
        if len(found) != 1:
            raise InputError(
                f"source {source}: has {len(found)} files {name}_*_{split}.txt; "
                "give a folder with one, the file itself, or another split"
            )
        return parse_babi(found[0].name, _read(found[0]).splitlines())
    return _from_hub(name, source, split)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); give a bAbI file") from error


def parse_babi(file: str, lines: Iterable[str]) -> tuple[Sample, ...]:
    r"""Samples of one file.

    Args:
        file: Its name, for errors.
        lines: Its lines.

    Raises:
        InputError: if a line is not in the format, or there is no question.

    Example:
        >>> parse_babi("x.txt", ["1 Mary went to the garden.", "2 Where is Mary? \tgarden\t1"])[0].question
        'Where is Mary?'
    """
    samples: list[Sample] = []
    facts: list[str] = []
    index_of: dict[int, int] = {}
    last = 0
    for at, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise _bad(file, at, line, "'NUMBER SENTENCE'")
        number = int(match[1])
        if number == 1:
            facts, index_of = [], {}
        elif number != last + 1:
            raise _bad(file, at, line, f"line number {last + 1} or 1")
        last = number
        text, *rest = match[2].split("\t")
        if not rest:
            index_of[number] = len(facts)
            facts.append(text.strip())
            continue
        if len(rest) != 2 or not rest[0].strip() or not _NUMBERS.fullmatch(rest[1].strip()):
            raise _bad(file, at, line, "'NUMBER QUESTION<TAB>ANSWER<TAB>SUPPORTING NUMBERS'")
        numbers = [int(word) for word in rest[1].split()]
        if not all(supporting in index_of for supporting in numbers):
            raise _bad(file, at, line, f"supporting numbers among the facts before it, {_span(index_of)}")
        samples.append(
            Sample(tuple(facts), text.strip(), rest[0].strip(), tuple(index_of[supporting] for supporting in numbers))
        )
    if not samples:
        raise InputError(f"{file}: has no question; a bAbI file has lines 'NUMBER QUESTION<TAB>ANSWER<TAB>NUMBERS'")
    return tuple(samples)


def _bad(file: str, at: int, line: str, expected: str) -> InputError:
    shown = line if len(line) <= 60 else line[:57] + "..."
    return InputError(f"{file}, line {at}: expected {expected}, found {shown!r}")


def _span(index_of: Mapping[int, int]) -> str:
    return f"{min(index_of)} to {max(index_of)}" if index_of else "of which there are none"


def _from_hub(name: str, source: str, split: str) -> tuple[Sample, ...]:
    # The dataset itself is a script, which today's `datasets` does not run; the hub keeps its rows as parquet.
    rows = list(hub_rows("source", source, f"en-10k-{name}", split=split, revision="refs/convert/parquet"))
    try:
        lines = [line for row in rows for line in _lines(row["story"])]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"source {source}: its rows have not the columns of facebook/babi_qa ({type(error).__name__}: {error}); "
            "give that, or a folder with bAbI files"
        ) from error
    return parse_babi(f"{source} {name} {split}", lines)


def _lines(story: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    columns = (story["text"], story["answer"], story["supporting_ids"])
    for number, (text, answer, supporting) in enumerate(zip(*columns, strict=True), start=1):
        lines.append(f"{number} {text}" + (f"\t{answer}\t{' '.join(supporting)}" if answer else ""))
    return lines
