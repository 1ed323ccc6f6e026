"""Progress: nothing, lines now and then, or a bar that leaves nothing behind."""

import io
import sys

import pytest

from recurrent_memory.inference import progress as progress_module
from recurrent_memory.inference.progress import make_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_shown_unless_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(False)
    progress.update(10, 0.5)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = make_progress(True)
    for second, tokens, fraction in (
        (0, 1000, 0.1),
        (10, 2000, 0.2),
        (40, 5000, 0.5),
        (45, 5500, 0.55),
        (75, 9000, None),
    ):
        now[0] = 100.0 + second
        progress.update(tokens, fraction)
    progress.close()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["5,000 tokens, 50%, 100 tokens/s, 0:50 left", "9,000 tokens, 107 tokens/s"]


def test_other_things_are_counted_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = make_progress(True, "passages")
    progress.update(128, 0.128)
    now[0] = 200.0
    progress.update(256, 0.256)
    assert capsys.readouterr().err == "256 passages, 26%, 1.3 passages/s, 9:41 left\n"  # 74.4 % at 12.8 % in 100 s


def test_a_short_reading_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(True)
    progress.update(1000, 1.0)
    progress.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("fraction", [0.25, None])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, fraction: float | None) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    progress = make_progress(True)
    progress.update(1000, 0.0)
    progress.update(123456, fraction)
    progress.close()
    shown = terminal.getvalue()
    assert "123,456 tokens" in shown
    assert "tokens/s" in shown
    assert (" left" in shown) == (fraction is not None)
    assert shown.endswith("\x1b[2K")  # its line is cleared


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00"), (100_000, "27:46:40")])
def test_the_time_left(seconds: float, shown: str) -> None:
    assert progress_module._clock(seconds) == shown
