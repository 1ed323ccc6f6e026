"""A folder is one process's at a time, and nobody's when that process is gone, in whatever way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recurrent_memory.errors import OutputError
from recurrent_memory.evaluation.folder import open_folder
from recurrent_memory.locking import NAME, alone_in

HELD = "another process is writing there; wait until it has ended, or give another folder"
HOLD = """
import sys, time
from pathlib import Path
from recurrent_memory.locking import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_kept_out_until_the_one_inside_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=HELD), alone_in(folder):
            pass
        with pytest.raises(OutputError, match=HELD), open_folder(folder, {}, resume=False):
            pass
        assert list(folder.iterdir()) == [folder / NAME], "nothing was begun"
        other.send_signal(signal.SIGKILL)
        other.wait()
    with alone_in(folder):
        assert (folder / NAME).exists()
    assert not list(folder.iterdir())


def test_it_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), alone_in(tmp_path):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/folder: cannot be made"), alone_in(tmp_path / "file" / "folder"):
        pass
