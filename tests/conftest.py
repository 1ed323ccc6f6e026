"""For all tests: nothing is fetched, and progress bars of other libraries stay out of the output."""

import os
import signal

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

# A shell that starts the tests in the background has them ignore Ctrl-C, and so every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def shortcuts_in_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of tiny models, too, run at the positions that are wanted alone, though nothing is saved by it."""
    monkeypatch.setattr("recurrent_memory.backbones.last_layer.WORTH", 0)
