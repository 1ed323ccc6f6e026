"""`rmt` itself: quick help, one line for every failure, exit statuses."""

import errno
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from recurrent_memory import InputError
from recurrent_memory.cli import COMMANDS
from recurrent_memory.cli import common as common_module
from recurrent_memory.cli.common import Common, Notes, explain, read_argument, run_safely
from recurrent_memory.errors import ConfigError

COMMON = ["--json", "--device", "--dtype", "--threads", "--seed", "--debug"]


def test_help_lists_every_command_without_importing_it(rmt: Any) -> None:
    for arguments in (["--help"], []):
        printed = rmt(*arguments)
        assert printed.status == 0
        for name, (_, what) in COMMANDS.items():
            assert name in printed.out
            assert what.split()[0] in printed.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_the_common_options_and_an_example(rmt: Any, name: str) -> None:
    printed = rmt(name, "--help")
    assert printed.status == 0
    assert f"rmt {name}" in printed.out
    assert f"Example: rmt {name}" in " ".join(printed.out.split())
    for option in COMMON:
        # Training computes in float32 on the CPU.
        assert option in printed.out or (name == "train" and option in ("--device", "--dtype"))


def test_the_version(rmt: Any) -> None:
    from recurrent_memory import __version__

    assert rmt("--version").out == f"rmt {__version__}\n"


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from recurrent_memory.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    seconds: list[float] = []
    for _ in range(3):
        started = os.times()
        began = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        spent = os.times()
        cpu = spent.children_user - started.children_user + spent.children_system - started.children_system
        seconds.append(min(cpu, time.perf_counter() - began))
    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert loaded.isdisjoint({"torch", "transformers", "numpy", "tokenizers", "safetensors", "jaxtyping"})
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bogus"], "No such command 'bogus'. (see `rmt --help`)"),
        (["read", "--bogus"], "No such option: --bogus "),
        (["ask"], "Missing argument 'STATE'. (see `rmt ask --help`)"),
        (["read", "x", "--threads", "many", "--out", "y"], "Invalid value for '--threads': "),
        (["read", "x"], "Invalid value for --out: it is missing; name the state file to write (see `rmt read --help`)"),
        (["ask", "x", "y", "--threads", "0"], "--threads 0: must be 1 to 1024"),
        (["ask", "x", "y", "--threads", "-2"], "--threads -2: must be 1 to 1024"),
        (["ask", "x", "y", "--seed", "-1"], "--seed -1: must be 0 or more, and less than 2^63"),
        (["info", "x", "--seed", str(2**63)], f"--seed {2**63}: must be 0 or more, and less than 2^63"),
    ],
)
def test_wrong_usage_is_one_line(rmt: Any, arguments: list[str], line: str) -> None:
    assert rmt(*arguments).error.startswith(line)


def failing(error: BaseException) -> Any:
    def app(*_: Any, **__: Any) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("no\n  text\nhere"), "no text here"),
        (KeyboardInterrupt(), "interrupted"),
        (KeyboardInterrupt("saved; go on with --resume"), "saved; go on with --resume"),
        (typer.Abort(), "interrupted"),
        (
            MemoryError(),
            "out of memory: take a smaller model, --dtype bfloat16 or --device cpu; what was saved before is kept",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "out of memory: take a smaller model, --dtype bfloat16 or --device cpu (DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes); what was saved before is kept",
        ),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out of memory: take a smaller model"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "no space is left on the disk. Free some space, or choose a folder on another disk "
            "([Errno 28] No space left on device); what was saved before is kept",
        ),
        (
            Exception("No space left on device (os error 28)"),
            "no space is left on the disk. Free some space, or choose a folder on another disk "
            "(No space left on device (os error 28)); what was saved before is kept",
        ),
        (
            OSError(errno.EIO, "Input/output error", "book"),
            "[Errno 5] Input/output error: 'book'; check the file, the disk and the permissions",
        ),
        (
            TypeError("unsupported operand"),
            "an error inside rmt: TypeError (unsupported operand); run it again with --debug and report it",
        ),
        (ValueError(), "an error inside rmt: ValueError; run it again with --debug and report it"),
    ],
)
def test_every_error_is_one_line_and_status_2(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_safely(failing(error), []) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"rmt: {line}")
    assert printed.err.count("\n") == 1


def test_debug_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_safely(failing(InputError("no text")), ["--debug"]) == 2
    printed = capsys.readouterr()
    assert "Traceback" in printed.err
    assert printed.err.endswith("rmt: no text\n")


def test_leaving_is_no_error() -> None:
    assert explain(SystemExit(0)) is None
    with pytest.raises(SystemExit):
        run_safely(failing(SystemExit(0)), [])


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import sys; from recurrent_memory.cli import main; sys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert error == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_an_error() -> None:
    code = "import sys; from recurrent_memory.cli import main; sys.exit(main(['--help']))"
    with open("/dev/full", "wb") as full:
        result = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "rmt: no space is left on the disk. Free some space, or choose a folder on another disk "
        "([Errno 28] No space left on device); what was saved before is kept\n"
    )


def test_an_argument_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    assert read_argument("as it is") == "as it is"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffWhere is Zoë?\r\n".encode())))
    assert read_argument("-") == "Where is Zoë?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Zo\xeb")))
    with pytest.raises(InputError, match="standard input is not UTF-8 text"):
        read_argument("-")


def test_notes_wait_for_the_end_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    notes("Resuming.")
    assert capsys.readouterr().err == ""
    notes.show()
    assert capsys.readouterr().err == "Resuming.\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    watched = Notes()
    watched("Resuming.")
    assert capsys.readouterr().err == "Resuming.\n"
    watched.show()
    assert capsys.readouterr().err == ""


def test_threads_and_seed_are_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    state = torch.random.get_rng_state()
    Common(threads=3, seed=5).load_model(str(folder))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    torch.random.set_rng_state(state)
    assert set_to == [3]
    assert os.environ["RAYON_NUM_THREADS"] == "3"
    assert torch.get_num_threads() == threads


def test_common_options_out_of_range() -> None:
    with pytest.raises(ConfigError):
        Common(threads=0)
    assert common_module.FAILED == 2
