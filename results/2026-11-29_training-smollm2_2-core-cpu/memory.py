"""Peak memory of training with recomputation, alone in a process: PYTHONPATH=. python memory.py SEGMENTS, in the root."""

import sys

import torch

from benchmarks.common import SEED, peak_memory
from benchmarks.models import load
from recurrent_memory.training.bptt import Backpropagation, backpropagate


def main(segments: int) -> None:
    """SmolLM2-135M, segments of 128 tokens, a label at every token, one thread; gradients are part of what is counted."""
    torch.set_num_threads(1)
    model = load("smollm2", "cpu", SEED, 128).train()
    ids = torch.randint(0, model.view.vocab_size, (1, 128 * segments))
    labels = ids.clone()
    labels[:, 0] = -100
    with peak_memory("cpu") as found:
        backpropagate(model, ids, labels, method=Backpropagation("recompute"))
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None) / 1e6
    print(f"{segments} segments: {found['mb']:.0f} MB at most, gradients {gradients:.0f} MB of them")


if __name__ == "__main__":
    main(int(sys.argv[1]))
