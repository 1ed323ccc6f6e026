"""What a window of backpropagation means, written for reading: one row, one loss at a time, everything computed anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from contract.backbones import Tiny
from contract.cases import layerwise_reference, rules_of
from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.memories.reference import IGNORE, cut, decoder_fold, decoder_look, encoder_row, next_memory

Labels = Sequence[int] | int


def window_loss(tiny: Tiny, model: RecurrentMemoryModel, text: Sequence[int], labels: Labels, window: int) -> Tensor:
    """The sum of the losses of a text's segments, each computed through the `window` segments that end with its own."""
    if tiny.is_layerwise:
        return _layerwise_window_loss(tiny, model, text, labels, window)
    segments = cut(text, model.memory_config.segment_length)
    first = model.memory.initial_memory
    assert isinstance(first, Tensor)
    with torch.no_grad():
        memories = [first]
        for segment in segments[:-1]:
            memories.append(fold(tiny, model, memories[-1], segment))
    total = torch.zeros((), dtype=first.dtype)
    for index in range(len(segments)):
        start = index - window + 1
        memory = memories[start].detach() if start > 0 else first
        for segment in segments[max(start, 0) : index]:
            memory = fold(tiny, model, memory, segment)
        total = total + segment_loss(tiny, model, memory, segments, index, labels)
    return total


def _layerwise_window_loss(
    tiny: Tiny, model: RecurrentMemoryModel, text: Sequence[int], labels: Labels, window: int
) -> Tensor:
    segments = cut(text, model.memory_config.segment_length)
    with torch.no_grad():
        reading, memories = layerwise_reference(tiny, model), []
        for segment in segments:
            memories.append(reading.memory)
            reading.segment(segment, fold=True)
    total = torch.zeros((), dtype=torch.float64)
    for index, segment in enumerate(segments):
        reading, start = layerwise_reference(tiny, model), max(0, index - window + 1)
        if start:
            reading.memory = [reading.detached(kept) for kept in memories[start]]
        for before in segments[start:index]:
            reading.segment(before, fold=True)
        is_last = index == len(segments) - 1
        if tiny.is_classifier and not is_last:
            continue
        logits = reading.segment(segment, fold=not is_last)
        at = sum(map(len, segments[:index])) + int(tiny.is_decoder)
        if isinstance(labels, int):
            total = total + cross_entropy(logits, torch.tensor(labels))
        else:
            targets = list(labels[at : at + len(segment)])
            total = total + total_loss(logits[: len(targets)], targets)
    return total


def fold(tiny: Tiny, model: RecurrentMemoryModel, memory: Tensor, segment: Sequence[int]) -> Tensor:
    size, backbone, rules = model.memory_config.num_written, model.backbone, rules_of(model)
    if tiny.is_decoder:
        return decoder_fold(backbone, memory, segment, rules)[1]
    if tiny.is_seq2seq:
        return next_memory(backbone, encode(model, memory, segment)[0, :size], memory, segment, rules)
    row = encoder_row(backbone, rules_of(model).read(memory), segment, *tiny.cls_and_sep)
    hidden = backbone.base_model(inputs_embeds=row[None]).last_hidden_state[0]
    return next_memory(backbone, hidden[1 : 1 + size], memory, segment, rules)


def encode(model: RecurrentMemoryModel, memory: Tensor, segment: Sequence[int]) -> Tensor:
    ids = torch.tensor([[*segment, 1]])
    row = torch.cat([rules_of(model).read(memory)[None], model.backbone.get_input_embeddings()(ids)], 1)
    return model.backbone.get_encoder()(inputs_embeds=row).last_hidden_state


def segment_loss(
    tiny: Tiny, model: RecurrentMemoryModel, memory: Tensor, segments: list[list[int]], index: int, labels: Labels
) -> Tensor:
    """The loss of the predictions that are made at the positions of one segment."""
    backbone, segment, is_last = model.backbone, segments[index], index == len(segments) - 1
    nothing = memory.sum() * 0.0
    if tiny.is_decoder:
        assert not isinstance(labels, int)
        start = sum(map(len, segments[:index]))
        targets = list(labels[start + 1 : start + 1 + len(segment)])
        logits = decoder_look(backbone, memory, segment, rules_of(model))[: len(targets)]
        return nothing + total_loss(logits, targets)
    if tiny.is_masked_lm:
        assert not isinstance(labels, int)
        start = sum(map(len, segments[:index]))
        row = encoder_row(backbone, rules_of(model).read(memory), segment, *tiny.cls_and_sep)
        text_start = 2 + memory.shape[0]
        logits = backbone(inputs_embeds=row[None]).logits[0][text_start : text_start + len(segment)]
        return nothing + total_loss(logits, list(labels[start : start + len(segment)]))
    if not is_last:
        return nothing
    if tiny.is_seq2seq:
        assert not isinstance(labels, int)
        output = backbone(encoder_outputs=(encode(model, memory, segment),), labels=torch.tensor([labels]))
        return nothing + total_loss(output.logits[0], list(labels))
    assert isinstance(labels, int)
    row = encoder_row(backbone, rules_of(model).read(memory), segment, *tiny.cls_and_sep)
    return cross_entropy(backbone(inputs_embeds=row[None]).logits[0], torch.tensor(labels))


def total_loss(logits: Tensor, targets: list[int]) -> Tensor:
    labelled = [position for position, target in enumerate(targets) if target != IGNORE]
    if not labelled:
        return logits.sum() * 0.0
    return cross_entropy(logits[labelled], torch.tensor([targets[p] for p in labelled]), reduction="sum")
