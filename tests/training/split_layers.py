"""Run by `test_sharding.py` under `torchrun`: layers split over two processes, against the same model whole."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract.backbones import S
from contract.cases import model_of
from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.training.bptt import Backpropagation, backpropagate, measure
from recurrent_memory.training.sharding import is_sharded, shard_layers, whole, whole_weights
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from training.copy_task import AnyLengthTask, arguments, copy_model
from training.test_bptt import LENGTHS, ONE_OF_EACH, example

METHODS = (
    Backpropagation(),
    Backpropagation("recompute"),
    Backpropagation("truncated", 1),
    Backpropagation("truncated", 2),
)
TEXTS = ((LENGTHS, (1, S)), ((S, 3), LENGTHS))  # of each process


def gradients(model: RecurrentMemoryModel, inputs: dict[str, Tensor], method: Backpropagation) -> dict[str, Tensor]:
    model.zero_grad()
    backpropagate(model, **inputs, method=method)
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
    }


def compare_gradients(rank: int) -> None:
    for tiny in ONE_OF_EACH:
        tolerance = 1e-10 if tiny.exact else 1e-6
        alone = copy.deepcopy(model_of(tiny))
        split = copy.deepcopy(alone)
        shard_layers(split)
        assert is_sharded(split)
        for texts in TEXTS:
            every = [example(tiny, lengths) for lengths in texts]
            for labelled in (True, False):  # or the second process has nothing to learn from
                if not labelled:
                    every[1]["labels"] = torch.full_like(every[1]["labels"], -100)
                for method in METHODS:
                    expected = [gradients(alone, inputs, method) for inputs in every]
                    actual = gradients(split, every[rank], method)
                    largest = 0.0
                    for name in expected[0]:
                        mean = (expected[0][name] + expected[1][name]) / 2
                        got = whole(actual[name])
                        if got is actual[name]:  # not split: the trainer takes the mean
                            dist.all_reduce(got)
                            got = got / 2
                        difference = float((got - mean).abs().max() / max(1.0, float(mean.abs().max())))
                        assert difference <= tolerance, f"{tiny.name} {method} {name}: {difference}"
                        largest = max(largest, float(mean.abs().max()))
                    assert largest > 1e-3, "or the comparison would say nothing"
                one, other = (float(measure(model, **every[rank]).loss) for model in (alone, split))
                assert abs(one - other) <= tolerance * max(1.0, abs(one)), f"{tiny.name} measured {one}, {other}"


def trainer(model: RecurrentMemoryModel, out: Path) -> RecurrentMemoryTrainer:
    changes: dict[str, Any] = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    return RecurrentMemoryTrainer(
        model,
        arguments(out, per_device_train_batch_size=2, ddp_backend="gloo", **changes),
        examples=AnyLengthTask(),
        num_segments=3,
        num_eval_examples=3,
    )


def go_on(rank: int, out: Path) -> None:
    """A training that goes on from its second checkpoint ends with the weights of the uninterrupted one, bit for bit."""
    whole_training = copy_model()
    shard_layers(whole_training)
    trainer(whole_training, out / "whole").train()
    expected = whole_weights(whole_training)
    if rank == 0:
        shutil.copytree(out / "whole" / "checkpoint-2", out / "resumed" / "checkpoint-2")
    dist.barrier()
    resumed = copy_model(seed=1)
    shard_layers(resumed)
    trainer(resumed, out / "resumed").train(resume_from_checkpoint=str(out / "resumed" / "checkpoint-2"))
    actual = whole_weights(resumed)
    assert expected is not None
    assert actual is not None
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name
    saved = RecurrentMemoryModel.from_pretrained(out / "whole" / "checkpoint-3")
    assert saved.fingerprint == saved.config.fingerprint
    for name, weight in saved.state_dict().items():
        assert torch.equal(expected[name], weight), name
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    compare_gradients(dist.get_rank())
    go_on(dist.get_rank(), Path(sys.argv[1]))
    dist.destroy_process_group()
