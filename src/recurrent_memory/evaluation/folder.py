"""The folder of an evaluation: what was asked for, every answer, and the table, the plot and the summary of them."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from ..locking import alone_in
from .length import Row
from .length_plot import draw_lengths
from .length_table import Line, tabulate
from .provenance import checkout, machine
from .tables import write_csv, write_json

SETTINGS, ROWS, RESULTS, TABLE, PLOT = "evaluation.json", "rows", "results.json", "accuracy.csv", "accuracy.png"


@contextmanager
def open_folder(folder: Path, settings: dict[str, Any], *, resume: bool) -> Generator[None]:
    """Begin an evaluation in a folder, or look whether the one in it is the same; no other process is let in meanwhile.

    Raises:
        OutputError: if there is one already and `resume` is not set, another process is in it, or it cannot be made.
        InputError: if it is another one, or damaged.
    """
    checkout()  # that of the code which reads, not of what is there when it has read
    with alone_in(folder):
        _begin(folder, settings, resume=resume)
        yield


def _begin(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    path = folder / SETTINGS
    if path.is_file():
        if not resume:
            raise OutputError(f"{folder}: holds an evaluation already; go on with --resume, or give another --out")
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: is damaged ({error}); give another --out") from error
        other = sorted(name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name))
        if other:
            raise InputError(f"{folder}: holds an evaluation with another {', '.join(other)}; give another --out")
        return
    try:
        (folder / ROWS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error
    write_json(settings, path)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Keep answers; the file is there as a whole or not at all."""
    write_json([row.to_dict() for row in rows], path)


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` kept.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(
            f"{path}: is damaged ({error}); delete it, and its group is read again with --resume"
        ) from error


def write_results(
    folder: Path,
    settings: dict[str, Any],
    rows: Sequence[Row],
    segment_length: int,
    title: str,
    chance: float | None,
    made: dict[str, Any],
) -> list[Line]:
    """The table of all answers, as CSV, as JSON beside the settings and what it took (`made`), and as a plot."""
    lines = tabulate(rows, segment_length)
    write_json({**settings, "lines": [line.to_dict() for line in lines], **made, **machine()}, folder / RESULTS)
    write_csv(Line, lines, folder / TABLE)
    draw_lengths(lines, folder / PLOT, title=title, chance=chance)
    return lines
