"""What a figure was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from recurrent_memory.evaluation import provenance
from recurrent_memory.evaluation.folder import open_folder


def test_the_commit_is_that_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance.checkout.cache_clear()
    head = ["one"]
    monkeypatch.setattr(
        provenance, "_git", lambda *arguments: {"rev-parse": head[0], "status": ""}.get(arguments[0], arguments[0])
    )
    with open_folder(tmp_path / "out", {}, resume=False):
        head[0] = "two"
        assert provenance.machine()["commit"] == "one"
        assert provenance.machine()["has_uncommitted_changes"] is False
    provenance.checkout.cache_clear()
    assert provenance.machine()["commit"] == "two"
    provenance.checkout.cache_clear()


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    provenance.checkout.cache_clear()
    monkeypatch.setattr(provenance, "_git", lambda *arguments: None)
    assert provenance.checkout() == {"commit": None, "has_uncommitted_changes": None}
    provenance.checkout.cache_clear()
