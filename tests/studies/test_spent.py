"""Time and memory of a process, over all of its attempts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recurrent_memory.studies import spent as module
from recurrent_memory.studies.spent import Spent


def run(path: Path, code: str) -> Spent:
    found = Spent(path)
    process = subprocess.Popen([sys.executable, "-c", code])
    assert found.until_end(process) == 0
    return found


def test_attempts_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    path = tmp_path / "a.spent"
    started = time.monotonic()
    first = run(path, "import time; kept = bytearray(60_000_000); time.sleep(1)").values()
    second = run(path, "import time; time.sleep(0.7)").values()
    assert (first["attempts"], second["attempts"]) == (1, 2)
    assert 1 <= first["elapsed_s"] < second["elapsed_s"] - 0.4
    assert second["elapsed_s"] <= time.monotonic() - started + 0.1
    if Path("/proc/self/status").exists():
        assert first["peak_rss_mb"] > 60
    assert second["peak_rss_mb"] == first["peak_rss_mb"]
    assert json.loads(path.read_text())["attempts"] == 2


def test_a_damaged_note_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.spent").write_text("{")
    assert Spent(tmp_path / "a.spent").values()["attempts"] == 1
