"""A whole training step with the loss through the head as it is, and as it was (chunks that are run again), by turns."""

from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor

from benchmarks.common import Contender, by_turns, median_interval
from benchmarks.models import load
from recurrent_memory.backbones.base import Backbone
from recurrent_memory.head_loss import at_least_float32, positions_at_a_time
from recurrent_memory.training import unroll
from recurrent_memory.training.bptt import Backpropagation, backpropagate
from recurrent_memory.training.trained import LoraSettings, choose_trained

model = load("135m")
choose_trained(model, "lora", LoraSettings(16, 32, ("q_proj", "v_proj")))
model.train()
ids = torch.randint(0, model.view.vocab_size, (1, 1024), generator=torch.Generator().manual_seed(0))


def before(view: Backbone, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of chunks that are run again for their gradients, and which predictions are right."""

    def of_chunk(some: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = at_least_float32(view.head(some))
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        return losses, logits.detach().argmax(-1) == wanted

    size = positions_at_a_time(view)
    parts = [
        torch.utils.checkpoint.checkpoint(of_chunk, *part, use_reentrant=False)
        for part in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat([losses for losses, _ in parts]), torch.cat([right for _, right in parts])


def step() -> Tensor:
    """As it is."""
    return backpropagate(model, ids, ids, method=Backpropagation("recompute")).loss


def step_before() -> Tensor:
    """As it was."""
    with patch.object(unroll, "head_losses", before):
        return step()


print("losses:", float(step()), float(step_before()))
model.zero_grad()
contenders = [Contender("now", step, model.zero_grad), Contender("before", step_before, model.zero_grad)]
seconds = by_turns(contenders, 9, "cpu")
for name, values in seconds.items():
    print(name, [round(value, 3) for value in values], median_interval(values))
print("ratio", median_interval([a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)]))
