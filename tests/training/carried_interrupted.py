"""Run by `test_carried_interrupted.py` in a process of its own, which is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from recurrent_memory.training import carried
from recurrent_memory.training.make import make
from training.carried_recipe import recipe


def train(folder: Path, step_s: float = 0.0, *, resume: bool = False) -> None:
    """Train, each step long enough for the process to be killed in it."""
    torch.set_num_threads(1)
    carried.LOG_EVERY = 1
    make(recipe(folder), resume=resume, report=lambda _: time.sleep(step_s))


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]), resume=sys.argv[3] == "resume")
