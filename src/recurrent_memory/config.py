"""What a memory is: its kind, its size, and how much text a segment holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import ConfigError

CARRY_NAMES = ("hidden", "sign", "norm", "gate", "gated-norm", "first")


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """The settings of a recurrent memory. Validated at construction.

    Args:
        num_memory_tokens: M, memory tokens in a block. 0 switches the memory off: the model is then exactly the
            backbone run on separate segments.
        segment_length: S, text tokens in a segment. Counts neither memory nor special tokens.
        kind: The way of remembering, a name from `recurrent_memory.memories`.
        carry: What is carried of the hidden state at the write positions: `hidden`, all of it, as in the papers; `sign`,
            one bit of each of its numbers, which lasts for longer; `norm`, all of it, on the scale of embeddings; `gate`,
            as much of it as a learned gate lets through, added to the first memory; `gated-norm`, the same on the scale of
            embeddings; `first`, nothing: the first memory stands before every segment, a learned prefix, which is what a memory
            has to be better than. Of `kind="tokens"` only.
        recent: R, how many of the M memory tokens, the last ones, are the embeddings of the last R tokens that were read; the
            others are written by the model. With R = M nothing is written: segments overlap by M tokens, no more. Of
            `kind="tokens"` only.
        hold: τ of `carry="sign"`: how far a number has to be on the other side of 0 before its bit is turned over.
        slot_embeddings: Whether each memory token has learned embeddings of its own, added where it is read and where it is
            written. What is carried need not say then which of the M it is: rotary positions alone do not. Of `kind="tokens"`
            only.
        key_width: d_mem, the width of keys and queries before their feature map; of `kind="associative"` only.
        dpfp_order: ν of the feature map, which makes K = 2·ν·d_mem features; of `kind="associative"` only.
        cover: The share, 0…1, of every feature of a key that is written which its normaliser has at least. At 0, as in the paper, a
            feature may be in the matrix and not in the normaliser, and what asks for little else is divided by next to nothing;
            of `kind="associative"` only.

    Raises:
        ConfigError: if a value is of the wrong type or out of range.

    Example:
        >>> MemoryConfig(num_memory_tokens=16, segment_length=512).kind
        'tokens'
    """

    num_memory_tokens: int = 16
    segment_length: int = 512
    kind: str = "tokens"
    carry: str = "hidden"
    recent: int = 0
    hold: float = 0.0
    slot_embeddings: bool = False
    key_width: int = 64
    dpfp_order: int = 3
    cover: float = 0.0

    def __post_init__(self) -> None:
        _check_int("num_memory_tokens", self.num_memory_tokens, minimum=0)
        for name in ("segment_length", "key_width", "dpfp_order"):
            _check_int(name, getattr(self, name), minimum=1)
        from .memories.registry import memory_kinds

        if self.kind not in memory_kinds():
            raise ConfigError(f"kind={self.kind!r} is not a kind of memory; choose one of {', '.join(memory_kinds())}")
        if self.carry not in CARRY_NAMES:
            raise ConfigError(f"carry={self.carry!r} is not a way to carry; choose one of {', '.join(CARRY_NAMES)}")
        if self.carry != "hidden" and self.kind != "tokens":
            raise ConfigError(f"carry={self.carry!r} is of kind='tokens' only; leave it out of kind={self.kind!r}")
        _check_int("recent", self.recent, minimum=0)
        if self.recent and self.kind != "tokens":
            raise ConfigError(f"recent={self.recent} is of kind='tokens' only; leave it out of kind={self.kind!r}")
        if self.recent > self.num_memory_tokens:
            raise ConfigError(
                f"recent={self.recent} is more than num_memory_tokens={self.num_memory_tokens}, of which it is a part"
            )
        if not isinstance(self.slot_embeddings, bool):
            raise ConfigError(f"slot_embeddings={self.slot_embeddings!r} must be True or False")
        if self.slot_embeddings and self.kind != "tokens":
            raise ConfigError(f"slot_embeddings is of kind='tokens' only; leave it out of kind={self.kind!r}")
        if isinstance(self.hold, bool) or not isinstance(self.hold, int | float) or not 0 <= self.hold < math.inf:
            raise ConfigError(f"hold={self.hold!r} must be a number of at least 0")
        if self.hold and self.carry != "sign":
            raise ConfigError(f"hold={self.hold} is of carry='sign' only; leave it out of carry={self.carry!r}")

        if isinstance(self.cover, bool) or not isinstance(self.cover, int | float) or not 0 <= self.cover <= 1:
            raise ConfigError(f"cover={self.cover!r} must be a number from 0 to 1")
        if self.cover and self.kind != "associative":
            raise ConfigError(f"cover={self.cover} is of kind='associative' only; leave it out of kind={self.kind!r}")

    @property
    def num_written(self) -> int:
        """Memory tokens that the model writes: M - R."""
        return self.num_memory_tokens - self.recent

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: if a key is unknown or a value is not valid.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown memory settings {unknown}; known are {sorted(known)}")
        return cls(**values)


def _check_int(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be an int of at least {minimum}, not {type(value).__name__}")
    if value < minimum:
        raise ConfigError(f"{name}={value} must be at least {minimum}")
