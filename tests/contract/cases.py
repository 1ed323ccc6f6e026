"""Models, texts, oracles and comparisons that the contract tests share."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from contract.backbones import VOCAB, M, S, Tiny
from recurrent_memory import MemoryConfig, MemoryState, RecurrentMemoryModel
from recurrent_memory.memories import reference
from recurrent_memory.memories.reference import Reference
from recurrent_memory.memories.reference_associative import AssociativeReference, Weights
from recurrent_memory.memories.reference_layers import LayerwiseReference
from recurrent_memory.memories.reference_per_layer import PerLayerReference

IGNORE = reference.IGNORE
# Empty; shorter than a segment; up to a boundary, and past it; several segments.
LENGTHS = (0, 1, S - 1, S, S + 1, 2 * S, 3 * S + 2)


@cache
def model_of(
    tiny: Tiny, num_memory_tokens: int = M, segment_length: int = S, dtype: torch.dtype = torch.float64
) -> RecurrentMemoryModel:
    """A model of the suite, the same object each time: change nothing in it, or take a `copy_of` it."""
    torch.manual_seed(0)  # of the first memory
    model = RecurrentMemoryModel.from_backbone(
        backbone_of(tiny),
        memory_of(tiny, num_memory_tokens, segment_length),
        **tiny.arguments,
    )
    if tiny.kind == "associative":
        _use_every_weight(model.memory)
    if tiny.carry in ("gate", "gated-norm"):  # closed when it is new: nothing would be remembered
        torch.nn.init.normal_(model.memory.carry.gate)
    return model.to(dtype).eval()


def memory_of(tiny: Tiny, num_memory_tokens: int = M, segment_length: int = S) -> MemoryConfig:
    return MemoryConfig(
        num_memory_tokens,
        segment_length,
        kind=tiny.kind,
        carry=tiny.carry,
        recent=min(tiny.recent, num_memory_tokens),
        hold=tiny.hold,
        slot_embeddings=tiny.slots,
        key_width=8,
        dpfp_order=3,
        cover=tiny.cover,
    )


def _use_every_weight(memory: torch.nn.Module) -> None:
    """Values are zero when they are new: nothing would be remembered.

    Queries are like keys, so that what is remembered is found: a query that is orthogonal to all keys divides one rounding
    error by another.
    """
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        memory.query.copy_(memory.key + torch.randn_like(memory.key) * 0.03)


def first_parameter(model: RecurrentMemoryModel) -> str:
    """The name of what a memory writes with."""
    return f"memory.{next(name for name, _ in model.memory.named_parameters())}"


def copy_of(tiny: Tiny, **kwargs: object) -> RecurrentMemoryModel:
    return copy.deepcopy(model_of(tiny, **kwargs))  # type: ignore[arg-type]


def backbone_of(tiny: Tiny, seed: int = 0, **more: object):
    """A backbone whose every weight matters: none is zero, none is nearly so."""
    model = tiny.build(**more)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.25 if parameter.ndim > 1 else parameter + noise * 0.1)
    return model.eval()


def text_of(tiny: Tiny, length: int, seed: int = 0) -> list[int]:
    rng = random.Random(f"{tiny.name} {length} {seed}")
    ordinary = [token for token in range(VOCAB) if token not in tiny.special]
    return rng.choices(ordinary, k=length)


def texts_of(tiny: Tiny, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    return [text_of(tiny, length, seed + row) for row, length in enumerate(lengths)]


def batch(rows: Sequence[Sequence[int]], side: str, filler: int = 7) -> tuple[Tensor, Tensor]:
    """Rows as one tensor and its mask. What stands at padding is an ordinary token: only the mask tells."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), filler), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def unbatch(values: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[keep.bool()] for row, keep in zip(values, mask, strict=True)]


def labels_of(tiny: Tiny, rows: Sequence[Sequence[int]], seed: int = 0) -> list:
    """For each text what the family is trained with; some tokens have no label."""
    rng = random.Random(f"labels {tiny.name} {seed}")
    if tiny.is_classifier:
        return [rng.randrange(3) for _ in rows]
    if tiny.is_seq2seq:
        return [
            [rng.randrange(2, VOCAB), IGNORE, *rng.choices(range(2, VOCAB), k=2), IGNORE][: 2 + index % 4]
            for index, _ in enumerate(rows)
        ]
    return [[token if rng.random() < 0.7 else IGNORE for token in row] for row in rows]


def batch_labels(tiny: Tiny, labels: list, side: str) -> Tensor:
    if tiny.is_classifier:
        return torch.tensor(labels)
    return batch(labels, "right" if tiny.is_seq2seq else side, filler=IGNORE)[0]


def oracle(tiny: Tiny, model: RecurrentMemoryModel, text: Sequence[int], labels=None) -> Reference:
    """The slow way, over the backbone's own layers."""
    length = model.memory_config.segment_length
    if tiny.is_layerwise:
        return layerwise_reference(tiny, model).read(text, length, labels)
    memory = model.memory.initial_memory
    rules = rules_of(model)
    if tiny.is_decoder:
        return reference.decoder(model.backbone, memory, text, length, labels, rules)
    if tiny.is_seq2seq:
        return reference.seq2seq(model.backbone, memory, text, length, 1, labels, rules)
    return reference.encoder(model.backbone, memory, text, length, *tiny.cls_and_sep, labels, rules)


def rules_of(model: RecurrentMemoryModel) -> reference.Rules:
    """What becomes of a token memory, with the model's own weights."""
    slots = [getattr(model.memory, name, None) for name in ("read_slots", "write_slots")]
    return reference.Rules(carry_of(model), model.memory_config.recent, *slots)


def carry_of(model: RecurrentMemoryModel) -> reference.Carry:
    """The slow way of making the next memory, with the model's own weights."""
    memory = model.memory
    match model.memory_config.carry:
        case "sign":
            return reference.sign_carry(model.memory_config.hold)
        case "norm":
            return reference.norm_carry(memory.carry.scale)
        case "first":
            return reference.first_carry(memory.initial_memory[: model.memory_config.num_written])
        case "gate":
            return reference.gate_carry(memory.initial_memory[: model.memory_config.num_written], memory.carry.gate)
        case "gated-norm":
            initial = memory.initial_memory[: model.memory_config.num_written]
            return reference.gated_norm_carry(initial, memory.carry.gate, memory.carry.scale)
        case _:
            return reference.hidden_carry


def layerwise_reference(tiny: Tiny, model: RecurrentMemoryModel) -> LayerwiseReference:
    """The slow way of a memory in every layer, before any text."""
    parameters = dict(model.memory.named_parameters())
    if tiny.kind == "per-layer":
        return PerLayerReference(
            model.backbone, **parameters, cls_and_sep=None if tiny.is_decoder else tiny.cls_and_sep
        )
    weights = Weights(**parameters, order=model.memory_config.dpfp_order, cover=tiny.cover)
    special = () if tiny.is_decoder else tiny.cls_and_sep
    return AssociativeReference(model.backbone, weights, special[:1], special[1:], is_causal=tiny.is_decoder)


def oracle_logits(reference: Reference) -> Tensor:
    assert reference.logits is not None
    return reference.logits


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Largest difference at most the tolerance, relative to the largest value where that is above 1."""
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    if actual.numel():
        scale = max(1.0, float(expected.detach().abs().max()))
        difference = float((actual.detach().double() - expected.detach().double()).abs().max())
        assert difference <= tolerance * scale, f"{what}: {difference:.3g} off, {tolerance * scale:.3g} allowed"


def assert_same_state(actual: MemoryState, expected: MemoryState, tolerance: float) -> None:
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert_close(actual.tensors[name], tensor, tolerance, name)
    for name in ("tokens_read", "segments_folded", "pending", "pending_lengths"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert actual.memory_config == expected.memory_config
    assert actual.fingerprint == expected.fingerprint


def assert_identical(actual: MemoryState, expected: MemoryState) -> None:
    assert_same_state(actual, expected, 0.0)


def gradients(model: RecurrentMemoryModel, objective: Tensor) -> dict[str, Tensor]:
    """Of every parameter; zeros where it plays no part."""
    named = dict(model.named_parameters())
    values = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if value is None else value
        for (name, parameter), value in zip(named.items(), values, strict=True)
    }


def weights_like(tensor: Tensor, seed: int = 0) -> Tensor:
    """Fixed random numbers: their product with an output is an objective in which every entry counts."""
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        tensor.dtype
    )
