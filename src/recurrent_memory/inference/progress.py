"""How far a reading is, for a person who waits: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """What the reader tells about how far it is."""

    def update(self, tokens: int, fraction: float | None) -> None:
        """`tokens` have been read in all, which is this `fraction` of the text, if that is known."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def make_progress(wanted: bool, unit: str = "tokens") -> Progress:
    """A bar or lines on stderr, or nothing; `unit` is what is counted."""
    if not wanted:
        return _Silent()
    return _Bar(unit) if sys.stderr.isatty() else _Lines(unit)


class _Silent:
    def update(self, tokens: int, fraction: float | None) -> None:
        pass

    def close(self) -> None:
        pass


class _Rate:
    """How many a second, and the seconds left, since the first report: what was skipped before was not read."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._start: tuple[float, int, float | None] | None = None

    def tell(self, tokens: int, fraction: float | None) -> tuple[str, str]:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, tokens, fraction)
        began, first, first_fraction = self._start
        elapsed_s = now - began
        if elapsed_s <= 0 or tokens <= first:
            return "", ""
        left = ""
        if fraction is not None and first_fraction is not None and fraction > first_fraction:
            left = f"{_clock(elapsed_s * (1 - fraction) / (fraction - first_fraction))} left"
        rate = (tokens - first) / elapsed_s
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s", left


class _Lines:
    def __init__(self, unit: str) -> None:
        self._rate, self._unit = _Rate(unit), unit
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def update(self, tokens: int, fraction: float | None) -> None:
        rate, left = self._rate.tell(tokens, fraction)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES
        share = "" if fraction is None else f"{fraction:.0%}"
        print(
            ", ".join(part for part in (f"{tokens:,} {self._unit}", share, rate, left) if part),
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._rate = _Rate(unit)
        columns: list[Any] = [
            TextColumn("Reading"),
            BarColumn(),
            TextColumn("{task.fields[tokens]} " + unit),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
        ]
        # Transient: a command that fails leaves its one line and nothing else.
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None, tokens="0", rate="", left="")
        self._bar.start()

    def update(self, tokens: int, fraction: float | None) -> None:
        rate, left = self._rate.tell(tokens, fraction)
        total, completed = (None, 0.0) if fraction is None else (1.0, fraction)
        self._bar.update(self._task, total=total, completed=completed, tokens=f"{tokens:,}", rate=rate, left=left)

    def close(self) -> None:
        self._bar.stop()


def _clock(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
