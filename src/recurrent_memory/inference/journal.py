"""Where a reading is kept: `OUT` when it is finished, `OUT.partial` on the way, so that it can be gone on with.

Both are state files. Their metadata lists the texts that are in the memory; a partial one also says how far the last
text has been read. Nothing in them depends on when or how often a reading was interrupted: the finished file of a
resumed reading is the same, byte for byte, as that of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, OutputError, SourceChangedError, StateFileError
from ..files import check_writable
from ..state import MemoryState
from .sources import check_identity

if TYPE_CHECKING:
    from ..model import RecurrentMemoryModel

TEXTS, READING = "texts", "reading"


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One text that is in a memory.

    Args:
        sources: What identifies its files; None where it came from a pipe or an iterator.
        tokens: How much of it has been read.
        ids_sha256: The hash of the token ids read, 8 bytes each, little-endian.
        appended_to: The hash of the state file that it was read on from, if any.
    """

    sources: Any = None
    tokens: int = 0
    ids_sha256: str = ""
    appended_to: str | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What has to be the same for a resumed reading to end in the same bits.

    Args:
        dtype: What the model computes in.
        device: The kind of device.
        threads: CPU threads of each operation.
        tokens_per_block: Tokens that the model is given at a time.
        schedule: In what order its layers run, `sequential` or `diagonal`.
        fast: See `RecurrentMemoryModel.fast`.
    """

    dtype: str
    device: str
    threads: int
    tokens_per_block: int
    schedule: str
    fast: str

    @classmethod
    def of(cls, model: RecurrentMemoryModel, tokens_per_block: int, schedule: str) -> Conditions:
        """The conditions now."""
        return cls(
            model.compute_dtype, model.device.type, torch.get_num_threads(), tokens_per_block, schedule, model.fast
        )


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A reading that did not end: its memory so far, and how it was read."""

    state: MemoryState
    record: TextRecord
    conditions: Conditions


def texts_of(metadata: Mapping[str, str]) -> list[TextRecord]:
    """The texts that a state file says are in its memory."""
    try:
        return [TextRecord(**record) for record in json.loads(metadata.get(TEXTS, "[]"))]
    except (TypeError, ValueError) as error:
        raise StateFileError(f"the state's list of texts is damaged ({error}); read the text again") from error


def partial_path(out: str | Path) -> Path:
    """Where a reading is saved on its way."""
    return Path(out).with_name(f"{Path(out).name}.partial")


def file_sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def state_sha256(state: MemoryState) -> str:
    """The hash of what a state remembers."""
    digest = hashlib.sha256()
    for _, tensor in sorted({**state.tensors, "pending": state.pending, "tokens_read": state.tokens_read}.items()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Journal:
    """Finds what an earlier run left, and saves what this one reads.

    Args:
        out: Where the finished state goes.
        sources: The identity of the text, or None.
        append_to: The state, or its file, that is read on from, if any.
        metadata: Further strings to keep beside the state.
        notify: Told, in a line, what is found.
    """

    def __init__(
        self,
        out: Path,
        sources: Any,
        append_to: Path | MemoryState | None,
        metadata: Mapping[str, str],
        notify: Callable[[str], None],
    ) -> None:
        self.out, self.partial = out, partial_path(out)
        self.append_to = append_to if isinstance(append_to, Path) else None
        self.metadata = dict(metadata)
        self.notify = notify
        self.before: list[TextRecord] = []
        self.record = TextRecord(sources=_as_json(sources))
        if isinstance(append_to, MemoryState):
            self.record = replace(self.record, appended_to=state_sha256(append_to))
        elif append_to is not None:
            found = MemoryState.read_metadata(append_to)
            if READING in found:
                raise StateFileError(
                    f"{append_to}: is a reading that was interrupted; finish it first (`rmt read … --resume`), then append to it"
                )
            self.before = texts_of(found)
            self.record = replace(self.record, appended_to=file_sha256(append_to))

    @property
    def in_place(self) -> bool:
        """Whether the state that is read on from is the one that is written."""
        return self.append_to is not None and self.out.exists() and os.path.samefile(self.out, self.append_to)

    # ------------------------------------------------------------------ what is there

    def finished(self) -> MemoryState | None:
        """The state, if `out` is the finished reading of this very text already."""
        if not self.out.exists() or self._partial_goes_on():
            return None
        texts = texts_of(MemoryState.read_metadata(self.out))
        if not texts or not _are_same(texts[-1].sources, self.record.sources):
            return None
        if not self.in_place and texts[-1].appended_to != self.record.appended_to:
            return None
        self.record, self.before = texts[-1], texts[:-1]
        self.remove_partial()
        self.notify(f"{self.out} is complete: all {self.record.tokens:,} tokens have been read; nothing to resume.")
        return MemoryState.load(self.out)

    def _partial_goes_on(self) -> bool:
        """Whether an interrupted reading is one that appends to `out` as it is now."""
        if not self.in_place or not self.partial.exists():
            return False
        return _reading_of(self.partial)[0].appended_to == self.record.appended_to

    def check_free(self, resume: bool, force: bool) -> None:
        """Refuse, before hours of work, to overwrite what somebody may want.

        Raises:
            OutputError: if `out` exists, or a reading of it was interrupted, or it cannot be written.
        """
        check_writable(self.out, force=force or self.in_place)
        check_writable(self.partial, force=True)
        if self.partial.exists() and not resume and not force:
            raise OutputError(
                f"Cannot write '{self.out}': '{self.partial}' holds a reading of it that was interrupted. "
                "Go on with it with --resume (resume=True), or start again with --force (force=True)."
            )

    def interrupted(self, model: RecurrentMemoryModel, conditions: Conditions) -> Interrupted | None:
        """The reading to go on with.

        Raises:
            SourceChangedError: if the text, or the state that it is appended to, is another one now.
            ConfigError: if the model has another dtype now.
            StateError: if the file is damaged, or another model's.
        """
        if not self.partial.exists():
            self.notify(f"Nothing to resume: there is no {self.partial}. Reading from the beginning.")
            return None
        record, then = _reading_of(self.partial)
        if record.appended_to != self.record.appended_to:
            raise SourceChangedError(
                f"{self.partial}: began {_described(record.appended_to)}, which is not so now; "
                "give the same --append-to, or start again with --force"
            )
        if (record.sources is None) != (self.record.sources is None):
            raise SourceChangedError(
                f"{self.partial}: began with other files, or with a pipe; give the same ones, or start again with --force"
            )
        if record.sources is not None:
            check_identity(record.sources, self.record.sources)
        if then.dtype != conditions.dtype:
            raise ConfigError(
                f"{self.partial}: was begun with dtype {then.dtype}, this model has {conditions.dtype}; "
                f"go on with --dtype {then.dtype}, or start again with --force"
            )
        self._warn_of_other(then, conditions)
        self.before = texts_of(MemoryState.read_metadata(self.partial))
        return Interrupted(MemoryState.load(self.partial, model=model), record, then)

    def _warn_of_other(self, then: Conditions, now: Conditions) -> None:
        changed = [
            f"{name} {before} then, {after} now"
            for name, before, after in (
                ("device", then.device, now.device),
                ("threads", then.threads, now.threads),
                ("fast", then.fast, now.fast),
            )
            if before != after
        ]
        if changed:
            self.notify(
                f"The last digits of the memory may differ from an uninterrupted reading: {', '.join(changed)}."
            )

    # ------------------------------------------------------------------ saving

    def save_partial(self, state: MemoryState, tokens: int, ids_sha256: str, conditions: Conditions) -> None:
        """Keep how far the reading is. The one kept before stays whole if this fails.

        Raises:
            OutputError: if it cannot be written; says how to go on.
        """
        record = replace(self.record, tokens=tokens, ids_sha256=ids_sha256)
        reading = {**asdict(record), **asdict(conditions)}
        header = {**self.metadata, TEXTS: _dumped(self.before), READING: json.dumps(reading, sort_keys=True)}
        try:
            state.save(self.partial, header)
        except OutputError as error:
            raise self._with_advice(error) from error

    def finish(self, state: MemoryState, tokens: int, ids_sha256: str) -> None:
        """Write the finished state, and remove the partial one.

        Raises:
            OutputError: if it cannot be written; says how to go on.
        """
        self.record = replace(self.record, tokens=tokens, ids_sha256=ids_sha256)
        try:
            state.save(self.out, {**self.metadata, TEXTS: _dumped([*self.before, self.record])})
        except OutputError as error:
            raise self._with_advice(error) from error
        self.remove_partial()

    def remove_partial(self) -> None:
        """Remove the partial state, and what a killed process left of one."""
        for target in (self.partial, self.out):
            if len(target.name) > 40:
                continue  # `atomic_write` cuts such a name, so that the temporary file may be another one's
            for stale in target.parent.glob(f".{escape(target.name)}.????????.tmp"):
                with suppress(OSError):
                    stale.unlink()
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _with_advice(self, error: OutputError) -> OutputError:
        if not self.partial.exists():
            return error
        advised = OutputError(
            f"{error} What was read before is in '{self.partial}': go on with --resume (resume=True)."
        )
        advised.errno = error.errno
        return advised


def _are_same(old: Any, new: Any) -> bool:
    if old is None or new is None:
        return old is new
    try:
        check_identity(old, new)
    except SourceChangedError:
        return False
    return True


def _reading_of(partial: Path) -> tuple[TextRecord, Conditions]:
    metadata = MemoryState.read_metadata(partial)
    try:
        reading = json.loads(metadata[READING])
        record = TextRecord(**{name: reading[name] for name in TextRecord.__slots__})
        return record, Conditions(**{name: reading[name] for name in Conditions.__slots__})
    except (KeyError, TypeError, ValueError) as error:
        raise StateFileError(
            f"{partial}: is not an interrupted reading ({error!r}); start again with --force"
        ) from error


def _described(appended_to: str | None) -> str:
    return (
        "without a state to append to"
        if appended_to is None
        else f"by appending to a state with the hash {appended_to[:12]}"
    )


def _dumped(texts: list[TextRecord]) -> str:
    return json.dumps([asdict(text) for text in texts], sort_keys=True)


def _as_json(value: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(value))
