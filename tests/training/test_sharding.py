"""Layers split over processes (FSDP) train as whole ones do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recurrent_memory.errors import ConfigError
from recurrent_memory.training.sharding import shard_layers
from training.copy_task import copy_model

HERE = Path(__file__).parent


@pytest.mark.slow
def test_split_layers_train_as_whole_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(HERE / "split_layers.py"), str(tmp_path)], env=environment, check=True, timeout=600)
    assert (tmp_path / "resumed" / "checkpoint-3" / "random-1.safetensors").is_file()


def test_one_process_has_nothing_to_split_over() -> None:
    with pytest.raises(ConfigError, match=r"start several: torchrun --nproc-per-node 2"):
        shard_layers(copy_model())
