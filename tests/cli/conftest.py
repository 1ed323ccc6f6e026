"""A model folder, a text, and a way to call `rmt` without a new process."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recurrent_memory.cli import main
from tiny_models import prose, save_tiny_model


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr, without the name of the command."""
        assert self.status == 2, self.out
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.startswith("rmt: ")
        return self.err.removeprefix("rmt: ").removesuffix("\n")


Rmt = Callable[..., Result]


@pytest.fixture
def rmt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rmt:
    """Run a command; the status, what it printed, and that it left one clear line where it failed."""

    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Result(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, not to be changed."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with other weights, not to be changed."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(prose(40), "utf-8")
    return path


@pytest.fixture
def state(rmt: Rmt, folder: Path, book: Path, tmp_path: Path) -> Path:
    path = tmp_path / "book.safetensors"
    assert rmt("read", book, "--model", folder, "--out", path).status == 0
    return path
