"""What every scored token cost, kept in a folder: on the way by document, in the end in the order of the text.

On the way, `rows/` holds the losses of each finished document, so that an interrupted evaluation goes on with the others.
A long document is written in parts, so that none is whole in memory; its last part says that it is finished. In the end
`tokens/` holds files of a fixed number of tokens, each with the tensors `nll` (float32), `document`, `position` and
`history` (int32).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import InputError, OutputError
from ..files import atomic_write
from .folder import ROWS
from .perplexity import Scored
from .perplexity_plan import Plan, Planned

TOKENS = "tokens"
TOKENS_PER_FILE = 2**20
_TOKENS_PER_PART = 2**18
Block = dict[str, NDArray[Any]]


class Coordinates(Protocol):
    """Position and history of the places in a document that predict."""

    def __call__(self, predictors: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `TextReading.coordinates`."""
        ...


class TokenStore:
    """The losses of an evaluation's tokens.

    Args:
        folder: Of the evaluation; it has a folder `rows/`.
        plan: Which tokens are scored.
        tokens_per_part: Of one document, to be held at a time.
    """

    def __init__(self, folder: Path, plan: Plan, tokens_per_part: int = _TOKENS_PER_PART) -> None:
        self._folder, self._plan, self._tokens_per_part = folder, plan, tokens_per_part
        self._held: dict[int, list[NDArray[np.float32]]] = {}
        self._num_parts: dict[int, int] = {}

    def has(self, document: Planned) -> bool:
        """Whether a document is finished."""
        return not document.num_scored or self._last(document).is_file()

    def add(self, scored: Scored) -> None:
        """Keep the next tokens of a document.

        Raises:
            OutputError: if they cannot be written.
        """
        number = scored.document.number
        held = self._held.setdefault(number, [])
        held.append(scored.nll.astype(np.float32))
        parts = self._num_parts.setdefault(number, 0)
        if scored.is_last:
            _save(self._last(scored.document), {"nll": np.concatenate(held)}, {"parts": str(parts)})
            del self._held[number], self._num_parts[number]
        elif sum(map(len, held)) >= self._tokens_per_part:
            _save(self._part(scored.document, parts), {"nll": np.concatenate(held)})
            self._held[number], self._num_parts[number] = [], parts + 1

    def finish(self, coordinates: Coordinates) -> None:
        """Put all documents in order, into files of their own.

        Raises:
            InputError: if what was kept is damaged, or of another text.
            OutputError: if they cannot be written.
        """
        target = self._folder / TOKENS
        try:
            target.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{target}: cannot be made ({error.strerror}); give another --out") from error
        for number, block in enumerate(_in_files(self._documents(coordinates))):
            _save(target / f"{number:05d}.safetensors", block)

    def forget_rows(self) -> None:
        """Remove what was kept on the way."""
        for path in (self._folder / ROWS).glob("*.safetensors"):
            path.unlink()

    def _documents(self, coordinates: Coordinates) -> Iterator[Block]:
        for document in self._plan.documents:
            start = 0
            for nll in self._losses(document):
                position, history = coordinates(np.arange(start, start + len(nll)))
                start += len(nll)
                yield {
                    "nll": nll,
                    "document": np.full(len(nll), document.number, np.int32),
                    "position": position.astype(np.int32),
                    "history": history.astype(np.int32),
                }
            if start != document.num_scored:
                raise InputError(
                    f"{self._last(document)}: has {start:,} losses of {document.num_scored:,}; delete it, and its document "
                    "is read again with --resume"
                )

    def _losses(self, document: Planned) -> Iterator[NDArray[np.float32]]:
        if not document.num_scored:
            return
        last = self._last(document)
        parts = int(_metadata(last).get("parts", "0"))
        for path in [*(self._part(document, part) for part in range(parts)), last]:
            yield _load(path)["nll"]

    def _last(self, document: Planned) -> Path:
        return self._folder / ROWS / f"{document.number:07d}.safetensors"

    def _part(self, document: Planned, part: int) -> Path:
        return self._folder / ROWS / f"{document.number:07d}.{part:05d}.safetensors"


def read_tokens(folder: str | Path) -> Iterator[Block]:
    """The scored tokens of a finished evaluation, in the order of the text, a file at a time.

    Raises:
        InputError: if there are none, or a file is damaged.

    Example:
        >>> sum(block["nll"].sum(dtype=float) for block in read_tokens("results/novels"))
        153012.25
    """
    paths = sorted((Path(folder) / TOKENS).glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: holds no finished evaluation of a text; finish it with --resume")
    for path in paths:
        yield _load(path)


def _in_files(blocks: Iterator[Block]) -> Iterator[Block]:
    held: list[Block] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block["nll"])
        while count >= TOKENS_PER_FILE:
            joined = _joined(held)
            yield {name: values[:TOKENS_PER_FILE] for name, values in joined.items()}
            held = [{name: values[TOKENS_PER_FILE:] for name, values in joined.items()}]
            count -= TOKENS_PER_FILE
    if count:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _save(path: Path, tensors: Block, metadata: dict[str, str] | None = None) -> None:
    whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(whole, temporary, metadata)


def _load(path: Path) -> Block:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: is damaged ({error}); give another --out") from error


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: is damaged ({error}); delete it, and its document is read again with --resume"
        ) from error
