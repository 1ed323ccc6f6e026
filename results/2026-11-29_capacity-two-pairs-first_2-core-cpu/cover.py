"""What is recalled of 1 to 8 pairs at most, by a memory whose normaliser covers what was written and by one whose need not.

python cover.py WEIGHTS

WEIGHTS: model.safetensors of a training of pilot.yaml beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from recurrent_memory import MemoryConfig
from recurrent_memory.memories.associative import AssociativeMemory
from recurrent_memory.training.bptt import measure
from recurrent_memory.training.examples import collate, held_out
from recurrent_memory.training.experiment import begin, load_experiment, make_examples

PAIRS, TEXTS = (1, 2, 4, 8), 128


def main(weights: str) -> None:
    """Print a line for each kind and number of pairs."""
    torch.set_num_threads(1)
    for cover in (0.0, 0.1):
        given = [f"memory.cover={cover}", "out=none", "task.options.num_keys=16", "task.ends=false"]
        for number in PAIRS:
            experiment = load_experiment(
                Path(__file__).with_name("pilot.yaml"), [*given, f"task.options.num_pairs={number}"]
            )
            beginning = begin(experiment)
            model = beginning.build((), None).eval()
            missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
            assert not unexpected
            assert set(missing) <= {"backbone.lm_head.weight"}  # tied
            assert MemoryConfig.from_dict(model.memory_config.to_dict()).cover == cover
            examples = make_examples(experiment, beginning)
            batch = collate([held_out(examples, 0, number, index) for index in range(TEXTS)])
            with _Watched() as watched:
                outcome = measure(model, **batch)
            share = 1 - int((outcome.num_wrong > 0).sum()) / TEXTS
            print(
                f"cover {cover}  pairs {number}  right {share:.3f}  loss {float(outcome.loss):.3g}  "
                f"largest number recalled {watched.largest:.3g}",
                flush=True,
            )


class _Watched:
    """Notes the largest number that is added to a hidden state."""

    def __enter__(self) -> _Watched:
        self.largest, self._recall = 0.0, AssociativeMemory.recall
        watched, recall = self, self._recall

        def noting(
            memory: AssociativeMemory, given: dict[str, Tensor], hidden: Tensor, kept: dict[str, Tensor]
        ) -> Tensor:
            after = recall(memory, given, hidden, kept)
            watched.largest = max(watched.largest, float((after - hidden).abs().max()))
            return after

        AssociativeMemory.recall = noting
        return self

    def __exit__(self, *exception: object) -> None:
        AssociativeMemory.recall = self._recall


main(sys.argv[1])
