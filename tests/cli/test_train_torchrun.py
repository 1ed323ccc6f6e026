"""`rmt train` in two processes: they share a batch, one of them writes and speaks, and the result is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recurrent_memory.models import load_model
from tiny_models import prose, tiny_backbone, tiny_tokenizer

LAUNCH = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def trained(folder: Path, out: str, size: int, launch: list[str]) -> list[dict[str, float]]:
    """The stages of a training with so many examples a process, as it prints them."""
    values = {
        "name": "tiny",
        "expected": "nothing",
        "time": "seconds",
        "cost": "nothing",
        "backbone": str(folder / "backbone"),
        "memory": {"num_memory_tokens": 2, "segment_length": 24},
        "task": {"name": "detect", "noise": str(folder / "noise.txt")},
        "stages": 2,
        "max_steps": 3,
        "eval_every": 2,
        "batch": {"size": size},
        "num_eval_examples": 3,
        "optimizer": {"learning_rate": 1e-3},
        "report_to": [],
        "out": str(folder / out),
    }
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", *launch, "recurrent_memory", "train", str(path), "--device", "cpu", "--json"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["stages"]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    backbone = tiny_backbone(positions=128)
    for name in ("resid_pdrop", "attn_pdrop", "embd_pdrop"):  # each process would draw its own
        setattr(backbone.config, name, 0.0)
    backbone.save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "noise.txt").write_text(prose(300), "utf-8")
    one = trained(tmp_path, "one", 4, [])
    two = trained(tmp_path, "two", 2, LAUNCH)
    assert [stage["num_segments"] for stage in two] == [1, 2]
    for alone, shared in zip(one, two, strict=True):
        assert shared["num_steps"] == alone["num_steps"] == 3
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)  # float32, summed in another order
    assert load_model(tmp_path / "two")[0].memory_config.segment_length == 24
