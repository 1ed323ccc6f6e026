"""Run by `test_interrupted.py` under `torchrun`: eight examples a step, shared out among the processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from recurrent_memory.training.bptt import Backpropagation
from recurrent_memory.training.sharding import shard_layers
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from training.copy_task import AnyLengthTask, arguments, copy_model

KINDS = {
    "full": Backpropagation(),
    "truncated": Backpropagation("truncated", 1),
    "recompute": Backpropagation("recompute"),
}


def train_all(out: Path, num_processes: int, *, split: bool = False) -> None:
    torch.set_num_threads(1)
    for kind, method in KINDS.items():
        args = arguments(
            out / kind,
            max_steps=3,
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=4 // num_processes,
            **({"ddp_backend": "gloo"} if num_processes > 1 else {}),
        )
        model = copy_model().double()
        if split:
            assert args.device.type == "cpu"  # asking for it starts the group of processes
            shard_layers(model)
        trainer = RecurrentMemoryTrainer(
            model,
            args,
            examples=AnyLengthTask(),
            num_segments=3,
            backpropagation=method,
            num_eval_examples=5,
        )
        trainer.train()


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), split=sys.argv[2:] == ["split"])
    torch.distributed.destroy_process_group()
