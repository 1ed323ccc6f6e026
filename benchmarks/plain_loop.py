"""The loop of the published research code: the whole model, head and all hidden states, on every segment, logits kept.

Bulatov, Kuratov, Burtsev: https://github.com/booydar/recurrent-memory-transformer
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from recurrent_memory import RecurrentMemoryModel


def segments(model: RecurrentMemoryModel, ids: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The memory after a text of whole segments, and the logits at all its positions.

    Args:
        model: Gives the weights; nothing else of it is used.
        ids: `[B, T]`.
        memory: `[B, M, D]`, before the text.
    """
    backbone, config, weights = model.backbone, model.memory_config, model.memory
    size, count = config.num_memory_tokens, config.num_written
    logits: list[Tensor] = []
    for segment in ids.split(config.segment_length, dim=1):
        text, before = backbone.get_input_embeddings()(segment), memory[:, :count]
        read, write = memory, before
        if config.slot_embeddings:
            read, write = read + weights.read_slots, write + weights.write_slots
        rows = torch.cat([read, text, write], 1)
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        output = backbone(inputs_embeds=rows, attention_mask=mask, output_hidden_states=True)
        logits.append(output.logits[:, size : size + text.shape[1]])
        written = output.hidden_states[-1][:, size + text.shape[1] :]
        carried = weights.carry(written, before=before, initial=weights.initial_memory[:count])
        last = torch.cat([memory[:, count:], text], 1)
        memory = torch.cat([carried, last[:, last.shape[1] - config.recent :]], 1)
    return memory, torch.cat(logits, 1)


@torch.no_grad()
def read(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """The memory after a text, `[B, M, D]`."""
    return segments(model, ids, model.memory.initial(ids.shape[0])["memory"])[0]


def memory_difference(ours: Tensor, plain: Tensor, *, is_exact: bool = True) -> float:
    """How far two memories are apart: the largest difference, of the plain loop's largest number.

    Args:
        ours: `[B, M, D]`.
        plain: The plain loop's.
        is_exact: Whether they are to be the same but for rounding, which may turn over a sign here and there.

    Raises:
        RuntimeError: if they are not, in float32 or more: then it is not the same work that was timed.
    """
    difference, largest = (ours - plain).abs(), plain.abs().max()
    share = float((difference > 0.01 * largest).double().mean())
    if is_exact and plain.dtype in (torch.float32, torch.float64) and share > 0.01:
        raise RuntimeError(f"ours and the plain loop do not compute the same: {share:.1%} of their memories differ")
    return float((difference.max() / largest).detach())


def train(model: RecurrentMemoryModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Backpropagation through all segments at once; gradients are added to `.grad`. The loss, `[]`.

    Args:
        model: Gives the weights; nothing else of it is used.
        ids: `[B, T]`.
        labels: `[B, T]`, those of `ids` that are to be predicted; -100 elsewhere.
    """
    _, logits = segments(model, ids, model.memory.initial(ids.shape[0])["memory"])
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return loss.detach()
