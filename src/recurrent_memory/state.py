"""What a model remembers, as a value: it can be kept, moved, split, saved, and read on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .config import MemoryConfig
from .errors import ConfigError, StateError, StateFileError, StateModelMismatchError
from .files import atomic_write
from .fingerprint import Source, is_same_model, text_of

if TYPE_CHECKING:
    from .model import RecurrentMemoryModel

FORMAT = "recurrent-memory-state"
FORMAT_VERSION = "1"
_COUNTERS = ("tokens_read", "segments_folded", "pending", "pending_lengths")


@dataclass(frozen=True, slots=True, eq=False)
class MemoryState:
    """The memory of B texts, and how far each has been read. Never changed in place.

    Args:
        tensors: What the kind of memory keeps, by name, every tensor with the batch axis first. Token memories
            keep one, `memory`, `[B, M, D]`.
        tokens_read: `[B]` text tokens consumed, pending ones included.
        segments_folded: `[B]` segments that are in the memory.
        pending: `[B, P]` token ids read but not yet folded, padded on the right.
        pending_lengths: `[B]` pending tokens of each row: 1…S, 0 only before any text or after `fold`.
        memory_config: The memory's settings.
        fingerprint_source: The fingerprint of the model that wrote it, or a function that returns it.

    Example:
        >>> state = model.read(ids)
        >>> state.save("book.safetensors")
        >>> state = MemoryState.load("book.safetensors", model=model)
    """

    tensors: dict[str, Tensor]
    tokens_read: Int[Tensor, " B"]
    segments_folded: Int[Tensor, " B"]
    pending: Int[Tensor, "B P"]
    pending_lengths: Int[Tensor, " B"]
    memory_config: MemoryConfig
    fingerprint_source: Source = field(default="", repr=False)

    @property
    def memory(self) -> Float[Tensor, "B M D"]:
        """The memory tokens, of a kind of memory that keeps them."""
        if "memory" not in self.tensors:
            raise StateError(
                f"a memory of kind {self.memory_config.kind!r} keeps {sorted(self.tensors)}, not memory tokens; use .tensors"
            )
        return self.tensors["memory"]

    @property
    def fingerprint(self) -> str:
        """Names the model that wrote this state; the same under dtype, device and adapter merging."""
        return text_of(self.fingerprint_source)

    @property
    def batch_size(self) -> int:
        """B, the number of texts."""
        return self.tokens_read.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the memory is."""
        return self.tokens_read.device

    @property
    def num_bytes(self) -> int:
        """Bytes of the memory and what is pending."""
        everything = [*self.tensors.values(), *(getattr(self, name) for name in _COUNTERS)]
        return sum(t.numel() * t.element_size() for t in everything)

    def _map(self, function: Callable[[Tensor], Tensor]) -> MemoryState:
        return replace(
            self,
            tensors={name: function(t) for name, t in self.tensors.items()},
            **{name: function(getattr(self, name)) for name in _COUNTERS},
        )

    def detach(self) -> MemoryState:
        """The same values, cut from the graph that computed them."""
        return self._map(lambda t: t.detach())

    def clone(self) -> MemoryState:
        """The same values in tensors of their own."""
        return self._map(lambda t: t.clone())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MemoryState:
        """On another device, or with the memory in another floating-point dtype."""
        moved = self._map(lambda t: t.to(device)) if device is not None else self
        if dtype is None:
            return moved
        if not dtype.is_floating_point:
            raise StateError(
                f"dtype={dtype} is not a floating-point dtype; a memory is one of torch.float32, torch.bfloat16 …"
            )
        return replace(moved, tensors={name: t.to(dtype) for name, t in moved.tensors.items()})

    def index(self, rows: int | slice | Sequence[int] | Tensor) -> MemoryState:
        """Some of the texts, in the order asked for; a repeated row is repeated.

        Raises:
            StateError: if a row is out of range.
        """
        every = torch.arange(self.batch_size, device=self.device)
        if isinstance(rows, int):
            rows = [rows]
        try:
            chosen = every[
                rows
                if isinstance(rows, slice | Tensor)
                else torch.as_tensor(list(rows), device=self.device, dtype=torch.long)
            ]
        except IndexError as error:
            raise StateError(f"rows {rows!r} are out of range of a state of {self.batch_size} texts") from error
        return self._map(lambda t: t[chosen]).trimmed()

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> MemoryState:
        return self.index(rows)

    def __len__(self) -> int:
        return self.batch_size

    @staticmethod
    def cat(states: Sequence[MemoryState]) -> MemoryState:
        """Several states as one batch, in order.

        Raises:
            StateError: if there are none, or if their settings or their models differ.
        """
        if not states:
            raise StateError("no states to put together; give at least one")
        first = states[0]
        if any(s.memory_config != first.memory_config for s in states):
            raise StateError("states with different memory settings cannot be one batch")
        if not all(is_same_model(s.fingerprint_source, first.fingerprint_source) for s in states):
            raise StateModelMismatchError("states of different models cannot be one batch")
        width = max(s.pending.shape[1] for s in states)
        pending = [torch.nn.functional.pad(s.pending, (0, width - s.pending.shape[1])) for s in states]
        return replace(
            first,
            tensors={name: torch.cat([s.tensors[name] for s in states]) for name in first.tensors},
            tokens_read=torch.cat([s.tokens_read for s in states]),
            segments_folded=torch.cat([s.segments_folded for s in states]),
            pending=torch.cat(pending),
            pending_lengths=torch.cat([s.pending_lengths for s in states]),
        )

    def where(self, rows: Tensor, other: MemoryState) -> MemoryState:
        """This state's rows where `rows` (`[B]`, boolean) is true, `other`'s elsewhere."""
        width = max(self.pending.shape[1], other.pending.shape[1])

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        def widen(pending: Tensor) -> Tensor:
            return torch.nn.functional.pad(pending, (0, width - pending.shape[1]))

        return replace(
            self,
            tensors={name: choose(t, other.tensors[name]) for name, t in self.tensors.items()},
            tokens_read=choose(self.tokens_read, other.tokens_read),
            segments_folded=choose(self.segments_folded, other.segments_folded),
            pending=choose(widen(self.pending), widen(other.pending)),
            pending_lengths=choose(self.pending_lengths, other.pending_lengths),
        )

    def folded(self, tensors: dict[str, Tensor], rows: Tensor) -> MemoryState:
        """With new memory, further by one segment (`rows` is `[B]`, boolean) or by several (`[B]`, counts)."""
        return replace(self, tensors=tensors, segments_folded=self.segments_folded + rows.long())

    def advanced(self, lengths: Int[Tensor, " B"]) -> MemoryState:
        """With more tokens counted as read."""
        return replace(self, tokens_read=self.tokens_read + lengths)

    def with_pending(self, pending: Int[Tensor, "B P"], lengths: Int[Tensor, " B"]) -> MemoryState:
        """With other pending tokens."""
        return replace(self, pending=pending, pending_lengths=lengths).trimmed()

    def trimmed(self) -> MemoryState:
        """With zeros for what is past a row's pending tokens, and no wider than they are: equal states, equal bytes."""
        width = int(self.pending_lengths.max()) if self.pending_lengths.numel() else 0
        inside = torch.arange(width, device=self.device) < self.pending_lengths[:, None]
        return replace(self, pending=torch.where(inside, self.pending[:, :width], 0))

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the state as one safetensors file, whole or not at all.

        Args:
            path: The file. An existing one is replaced.
            metadata: Further strings to keep beside it, such as where the text came from.

        Raises:
            OutputError: if the file cannot be written (full disk, no permission, no such folder).
        """
        from safetensors.torch import save

        tensors = {f"memory.{name}": t for name, t in self.tensors.items()}
        tensors |= {name: getattr(self, name) for name in _COUNTERS}
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        header = {
            **{name: value for name, value in (metadata or {}).items() if name != "sha256"},
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "memory_config": json.dumps(self.memory_config.to_dict(), sort_keys=True),
        }
        header["sha256"] = _hash(tensors, header)
        data = _in_order(save(tensors, metadata=header))
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(
        cls, path: str | Path, model: RecurrentMemoryModel | None = None, device: torch.device | str | None = None
    ) -> MemoryState:
        """Read a state back.

        Args:
            path: The file.
            model: The model that is to go on from it; its fingerprint is checked, its device and dtype are taken.
            device: Where to put it, when no model is given.

        Raises:
            StateFileError: if the file is missing, damaged, or not a memory state (a pickle is never opened).
            StateModelMismatchError: if another model wrote it.
        """
        tensors, header = _read_file(Path(path))
        try:
            config = MemoryConfig.from_dict(json.loads(header["memory_config"]))
            state = cls(
                tensors={name.removeprefix("memory."): t for name, t in tensors.items() if name.startswith("memory.")},
                memory_config=config,
                fingerprint_source=header["fingerprint"],
                **{name: tensors[name] for name in _COUNTERS},
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            detail = str(error) if isinstance(error, ConfigError) else repr(error)
            raise StateFileError(
                f"{path}: not a whole memory state ({detail}); write it again with `rmt read`"
            ) from error
        _check_consistent(state, path)
        if model is not None:
            model.check_state(state, where=str(path))
            return state.to(model.device, model.memory_dtype)
        return state.to(device) if device is not None else state

    @staticmethod
    def read_metadata(path: str | Path) -> dict[str, str]:
        """The strings stored beside a state: format, fingerprint, settings, and what `save` was given."""
        return _read_file(Path(path))[1]


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        # A safetensors file begins with the length of its header in eight bytes; any of them may look like a magic number.
        if head[8:] != b"{" and head.startswith((b"PK", b"\x1f\x8b", b"\x80")):
            raise StateFileError(f"{path}: is a pickle or an archive, and is not opened; states are safetensors files")
        with safe_open(str(path), framework="pt") as opened:
            header: dict[str, Any] = opened.metadata() or {}
            if header.get("format") != FORMAT:
                raise StateFileError(
                    f"{path}: is a safetensors file, but not a memory state; was it written by `rmt read`?"
                )
            if header.get("format_version") != FORMAT_VERSION:
                raise StateFileError(
                    f"{path}: state format {header.get('format_version')!r}, this version reads {FORMAT_VERSION!r}; "
                    "upgrade recurrent-memory"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StateFileError(f"{path}: no such file; write a state with `rmt read TEXT --out {path.name}`") from error
    except IsADirectoryError as error:
        raise StateFileError(f"{path}: is a folder, not a state file; a state is one .safetensors file") from error
    except SafetensorError as error:
        raise StateFileError(f"{path}: damaged or not a safetensors file ({error}); read the text again") from error
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read ({error.strerror or error}); check the permissions") from error
    if header.pop("sha256", None) != _hash(tensors, header):
        raise StateFileError(f"{path}: damaged, its bytes are not those that were written; read the text again")
    return tensors, header


def _hash(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted, so that equal states are equal files: the library shuffles them."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _check_consistent(state: MemoryState, path: str | Path) -> None:
    batch = state.tokens_read.shape
    wrong = [name for name in ("segments_folded", "pending_lengths") if getattr(state, name).shape != batch]
    wrong += [name for name, t in state.tensors.items() if t.shape[:1] != batch]
    if len(batch) != 1 or state.pending.ndim != 2 or state.pending.shape[:1] != batch or not state.tensors:
        wrong.append("pending")
    if wrong:
        raise StateFileError(f"{path}: the shapes of {wrong} do not agree; the file is damaged, read the text again")
    for name in _COUNTERS:
        counter: Tensor = getattr(state, name)
        if counter.dtype != torch.long or bool((counter < 0).any()):
            raise StateFileError(
                f"{path}: {name} must be whole numbers, none below 0; the file is damaged, read the text again"
            )
    if bool((state.pending_lengths > state.pending.shape[1]).any()):
        raise StateFileError(f"{path}: pending_lengths does not fit the pending tokens; the file is damaged")
    for name, tensor in state.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StateFileError(f"{path}: the memory {name!r} holds NaN or infinity; the model or the file is broken")
