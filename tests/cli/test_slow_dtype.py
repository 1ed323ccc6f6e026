"""Who asks a CPU for a dtype that it has no instructions for is told so, before hours of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory.cli import slow_dtype
from recurrent_memory.cli.slow_dtype import slowness, times_float32
from tiny_models import save_tiny_model

LINE = "bfloat16: a matrix product takes 8 times as long as in float32 on this CPU; float32 is faster here"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_dtype, "times_float32", lambda dtype: {torch.bfloat16: 8.2, torch.float16: 1.9}[dtype])


@pytest.mark.usefixtures("slow")
def test_what_is_said_of_which() -> None:
    assert slowness("bfloat16", "cpu") == slowness("bf16", "cpu") == LINE
    assert slowness("float16", "cpu") is slowness("fp16", "cpu") is None, "not twice as slow"
    assert slowness("bfloat16", "cuda") is None
    assert [slowness(name, "cpu") for name in ("auto", "float32", "float64", "int8")] == [None] * 4


def test_it_is_measured() -> None:
    assert times_float32(torch.float32) > 0
    assert times_float32(torch.bfloat16) > 0
    assert times_float32(torch.bfloat16) == times_float32(torch.bfloat16), "once"


@pytest.mark.usefixtures("slow")
def test_a_command_says_so_and_goes_on(rmt: Any, tmp_path: Path) -> None:
    folder, book = save_tiny_model(tmp_path / "model"), tmp_path / "book.txt"
    book.write_text("Nothing happened in the garden. " * 20)
    printed = rmt("read", book, "--model", folder, "--out", tmp_path / "out", "--dtype", "bfloat16", "--device", "cpu")
    assert printed.status == 0
    assert LINE in printed.err.splitlines()
    printed = rmt("read", book, "--model", folder, "--out", tmp_path / "other", "--device", "cpu")
    assert "times as long" not in printed.err
