"""A training that is killed goes on as if nothing had happened; two processes train as one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recurrent_memory import RecurrentMemoryModel
from training.distributed import KINDS, train_all
from training.interrupted import train

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMPARED = ("loss", "accuracy", "eval_loss", "eval_accuracy", "learning_rate", "grad_norm")


def history(out: Path) -> list[list[dict[str, Any]]]:
    """What the last checkpoint of each stage has logged, without times."""
    last = [sorted(stage.glob("checkpoint-*"))[-1] for stage in sorted(out.glob("stage-*"))]
    rows = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in last]
    return [[{key: row.get(key) for key in ("step", *COMPARED)} for row in stage] for stage in rows]


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    for stops_after in ("stage-1-segments-1/checkpoint-4", "stage-2-segments-3/checkpoint-2", None):
        step_s = 0.0 if stops_after is None else 0.3
        process = subprocess.Popen(
            [sys.executable, str(HERE / "interrupted.py"), str(out), str(step_s)], env=ENVIRONMENT
        )
        if stops_after is None:
            assert process.wait(timeout=600) == 0
            break
        while process.poll() is None and not (out / stops_after).exists():
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle"
        kills += 1
    assert kills == 2
    final, weights = RecurrentMemoryModel.from_pretrained(out / "final").state_dict(), whole.state_dict()
    assert final.keys() == weights.keys()
    assert "memory.initial_memory" in final
    for name, weight in final.items():
        assert torch.equal(weight, weights[name]), name
    assert history(out) == history(tmp_path / "whole")
    assert len(history(out)) == 2


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, str(HERE / "distributed.py"), str(tmp_path / "two")], env=ENVIRONMENT, check=True, timeout=600
    )
    train_all(tmp_path / "one", num_processes=1)
    for kind in KINDS:
        one, two = (load_file(tmp_path / name / kind / "checkpoint-3/model.safetensors") for name in ("one", "two"))
        for name, weight in one.items():
            # float64 sums in another order, of which Adam divides small ones by small ones.
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-8, msg=f"{kind} {name}")
        rows = [
            json.loads((tmp_path / name / kind / "checkpoint-3/trainer_state.json").read_text())["log_history"]
            for name in ("one", "two")
        ]
        for alone, shared in zip(*rows, strict=True):
            for key in COMPARED:
                if alone.get(key) is None:
                    assert shared.get(key) is None, key
                else:
                    assert shared.get(key) == pytest.approx(alone[key], rel=1e-6), key  # logged in float32
        assert (tmp_path / "two" / kind / "checkpoint-3/random-1.safetensors").is_file()
