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
    backbone, size = model.backbone, model.memory_config.num_memory_tokens
    logits: list[Tensor] = []
    for text in ids.split(model.memory_config.segment_length, dim=1):
        rows = torch.cat([memory, backbone.get_input_embeddings()(text), memory], 1)
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        output = backbone(inputs_embeds=rows, attention_mask=mask, output_hidden_states=True)
        logits.append(output.logits[:, size : size + text.shape[1]])
        written = output.hidden_states[-1][:, size + text.shape[1] :]
        memory = model.memory.carry(written, before=memory, initial=model.memory.initial_memory)
    return memory, torch.cat(logits, 1)


@torch.no_grad()
def read(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """The memory after a text, `[B, M, D]`."""
    return segments(model, ids, model.memory.initial(ids.shape[0])["memory"])[0]


def train(model: RecurrentMemoryModel, ids: Tensor) -> Tensor:
    """Backpropagation through all segments at once; gradients are added to `.grad`. The loss, `[]`."""
    _, logits = segments(model, ids, model.memory.initial(ids.shape[0])["memory"])
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.detach()
