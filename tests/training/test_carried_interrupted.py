"""A training on carried lanes that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.carried_recipe import logged

SCRIPT = Path(__file__).parent / "carried_interrupted.py"


def start(folder: Path, step_s: float, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(folder), str(step_s), "resume" if resume else "new"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    for folder in (whole, killed):
        folder.mkdir()
    assert start(whole, 0.0, resume=False).wait(timeout=600) == 0
    for number, stops_after in enumerate(("stage-1/checkpoint-1", "stage-2/checkpoint-2")):
        process = start(killed, 0.5, resume=number > 0)
        while process.poll() is None and not (killed / "model.run" / stops_after).exists():
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle"
    assert start(killed, 0.0, resume=True).wait(timeout=600) == 0
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (whole, killed))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
    assert logged(killed) == logged(whole)
    assert len(logged(whole)) == 9
