"""Run by `test_interrupted.py` in a process of its own, which is killed: a curriculum that goes on where it stands."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.training.bptt import Backpropagation
from recurrent_memory.training.curriculum import Curriculum, train_curriculum
from training.copy_task import AnyLengthTask, arguments, copy_model


class Slow(TrainerCallback):
    """Long enough a step for the process to be killed in it."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        time.sleep(self.step_s)


def train(out: Path, step_s: float = 0.0) -> RecurrentMemoryModel:
    torch.set_num_threads(1)
    model = copy_model(dropout=0.1)
    train_curriculum(
        model,
        arguments(out, eval_steps=2, gradient_accumulation_steps=2),
        examples=AnyLengthTask(),
        curriculum=Curriculum.of([1, 3], max_steps=7),
        backpropagation=Backpropagation("truncated", 2),
        num_eval_examples=6,
        callbacks=[Slow(step_s)],
        resume=True,
    )
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2])).save_pretrained(Path(sys.argv[1]) / "final")
