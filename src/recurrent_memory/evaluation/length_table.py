"""What rows of answers say: accuracy with its interval, by length, by the place of the fact, by the number of facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .intervals import wilson
from .length import Row

By = Literal["length", "position", "facts"]
POSITION_BINS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Args:
        by: "length": all rows of a length; "position": those whose fact stands in one fifth of the text; "facts": those
            with one number of facts.
        length: Tokens of the text.
        segments: Segments that they are.
        group: The fifth, such as "0.2–0.4", or the number of facts; empty for all.
        n: Questions.
        right: Right answers.
        accuracy: Their share.
        low: The lower end of its 95 % Wilson interval.
        high: The upper end.
        reset_accuracy: The same with the memory reset before the last segment.
        reset_low: The lower end of its interval.
        reset_high: The upper end.
    """

    by: By
    length: int
    segments: int
    group: str
    n: int
    right: int
    accuracy: float
    low: float
    high: float
    reset_accuracy: float
    reset_low: float
    reset_high: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def tabulate(rows: Iterable[Row], segment_length: int) -> list[Line]:
    """The table of some rows: by length, then by place and by number of facts where there is more than one."""
    groups: dict[tuple[By, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(("length", row.length, ""), []).append(row)
        groups.setdefault(("position", row.length, _fifth(row)), []).append(row)
        groups.setdefault(("facts", row.length, str(row.num_facts)), []).append(row)
    order = {"length": 0, "position": 1, "facts": 2}
    lines = [
        _line(by, length, group, members, segment_length)
        for (by, length, group), members in sorted(
            groups.items(), key=lambda item: (order[item[0][0]], item[0][1], len(item[0][2]), item[0][2])
        )
    ]
    kinds = {by: {line.group for line in lines if line.by == by} for by in ("position", "facts")}
    return [line for line in lines if line.by == "length" or len(kinds[line.by]) > 1]


def _fifth(row: Row) -> str:
    number = min(POSITION_BINS - 1, max(0, row.fact_token) * POSITION_BINS // max(1, row.length))
    return f"{number / POSITION_BINS:.1f}–{(number + 1) / POSITION_BINS:.1f}"


def _line(by: By, length: int, group: str, rows: Sequence[Row], segment_length: int) -> Line:
    right, reset = sum(row.right for row in rows), sum(row.reset_right for row in rows)
    (low, high), (reset_low, reset_high) = wilson(right, len(rows)), wilson(reset, len(rows))
    return Line(
        by=by,
        length=length,
        segments=-(-length // segment_length),
        group=group,
        n=len(rows),
        right=right,
        accuracy=round(right / len(rows), 4),
        low=round(low, 4),
        high=round(high, 4),
        reset_accuracy=round(reset / len(rows), 4),
        reset_low=round(reset_low, 4),
        reset_high=round(reset_high, 4),
    )
