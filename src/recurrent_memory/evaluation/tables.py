"""Files of results: a table as CSV, all else as JSON. Each is there as a whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_write

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_csv(kind: type[DataclassInstance], lines: Sequence[DataclassInstance], path: Path) -> None:
    """A table with a column for every field of a dataclass.

    Raises:
        OutputError: if it cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)


def write_json(value: Any, path: Path) -> None:
    """A value, to be read by people too.

    Raises:
        OutputError: if it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
