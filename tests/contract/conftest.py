"""Layers of tiny models, too, run at the positions that are wanted alone, though nothing is saved by it."""

import pytest


@pytest.fixture(autouse=True)
def _shortcuts_in_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recurrent_memory.backbones.last_layer.WORTH_ON_CPU", 0)
