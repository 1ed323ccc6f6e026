"""What a process has cost, all of its attempts together: one that was killed and resumed took both its times."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from ..evaluation.tables import write_json

LOOK_EVERY_S = 5.0


class Spent:
    """Time and memory of a process and of the attempts before it.

    Args:
        path: Where they are kept until it has ended, so that killing whoever looks loses seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._before_s, self._peak_mb = float(found["elapsed_s"]), found["peak_rss_mb"]
            self._attempts = int(found["attempts"]) + 1
        except (OSError, ValueError, KeyError, TypeError):
            self._before_s, self._peak_mb, self._attempts = 0.0, None, 1
        self._started = time.monotonic()

    def values(self) -> dict[str, Any]:
        """`elapsed_s` of all attempts, how many `attempts` there were, and `peak_rss_mb`, 10^6 bytes; None: not known here."""
        elapsed_s = round(self._before_s + time.monotonic() - self._started, 1)
        return {"elapsed_s": elapsed_s, "attempts": self._attempts, "peak_rss_mb": self._peak_mb}

    def until_end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for it; gives its exit status."""
        while True:
            self._look(process.pid)
            write_json(self.values(), self.path)
            try:
                return process.wait(LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue

    def _look(self, pid: int) -> None:
        """At the most memory that it has had so far, as Linux knows it."""
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peak_mb = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration, ValueError):
            return
        self._peak_mb = round(max(self._peak_mb or 0.0, peak_mb), 1)
