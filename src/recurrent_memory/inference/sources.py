"""Where text comes from: files, gzip files, folders, standard input, iterators. Always in chunks, never by lines.

The text is what the bytes decode to, with no line end translated; only a byte order mark is dropped.
Memory does not depend on the length of a file or of a line.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import re
import stat
import sys
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from recurrent_memory.errors import InputError, SourceChangedError

PathSource = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
TextSource = PathSource | Iterator[str]

STDIN = "-"

_SNIFF_BYTES = 65536
_CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # never in a text of an encoding that extends ASCII


@dataclass(frozen=True, slots=True)
class _Source:
    """One file, pipe or standard input, and its name in an identity: relative to what the user named."""

    path: Path | None  # None: standard input
    name: str
    is_stream: bool = False  # can be read once only

    def __str__(self) -> str:
        return repr(str(self.path)) if self.path else "standard input"


def iter_text(source: TextSource, *, encoding: str = "utf-8", chunk_chars: int = 65536) -> Iterator[str]:
    """Return the text of `source` in chunks of at most `chunk_chars` characters.

    Args:
        source: the path of a text file, of a gzip file with text in it (`.gz`), of a folder (its text files,
            recursively, in the order of their relative paths; hidden and binary ones are passed over), or `-` for
            standard input; a sequence of those; an open text file; or an iterator of strings, which are passed on as
            they are. Where there are several files, each is ended by a newline if it does not end with one.
        encoding: of the bytes; a byte order mark is tolerated.

    Raises:
        InputError: at the call, before any text: something is missing, empty, binary, in another encoding (as far as
            the first 64 KiB tell), without permission, a device, or `encoding` is unknown. While reading: a damaged
            gzip file, a byte that is not of this encoding, no text at all.

    Example:
        >>> "".join(iter_text(iter(["Mary went ", "to the garden."])))
        'Mary went to the garden.'
    """
    if chunk_chars < 1:
        raise InputError(f"chunk_chars={chunk_chars} is not a positive number of characters")
    if isinstance(source, io.TextIOBase):
        return _not_empty(_chunks_of(source, chunk_chars), "the open file")
    if isinstance(source, Iterator):
        return _not_empty(_checked_strings(source), "the iterator")
    encoding = _codec_name(encoding)
    sources = _find_sources(_as_paths(source), encoding)
    return _not_empty(_concatenate(sources, encoding, chunk_chars), ", ".join(map(str, sources[:3])))


def source_identity(source: PathSource, *, encoding: str = "utf-8") -> dict[str, Any]:
    """What the files are that `iter_text` reads: their names, sizes in bytes and SHA-256, in reading order.

    Standard input and pipes cannot be read twice: their size and hash are None, and `check_identity` refuses them.

    Raises:
        InputError: as `iter_text` does at the call.

    Example:
        >>> source_identity("book.txt")  # doctest: +SKIP
        {'files': [{'name': 'book.txt', 'size': 1153, 'sha256': '9f86d0…'}]}
    """
    return {"files": [_file_identity(file) for file in _find_sources(_as_paths(source), _codec_name(encoding))]}


def check_identity(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Compare two results of `source_identity`. Names may differ (a folder was moved); contents and order may not.

    Raises:
        SourceChangedError: a file is gone, new, or has other contents; or it was a pipe.
    """
    old_files, new_files = old["files"], new["files"]
    for file in [*old_files, *new_files]:
        if file["sha256"] is None:
            raise SourceChangedError(f"{file['name']!r} is a stream and cannot be read again: resume needs a file")
    if [file["sha256"] for file in old_files] == [file["sha256"] for file in new_files]:
        return
    raise SourceChangedError(
        f"the text has changed since the reading began: {_difference(old_files, new_files)}; "
        "give the same text, or start again with --force"
    )


def _difference(old_files: list[dict[str, Any]], new_files: list[dict[str, Any]]) -> str:
    old = {file["name"]: file for file in old_files}
    new = {file["name"]: file for file in new_files}
    for name in old:
        if name not in new:
            return f"{name!r} is gone"
        if old[name]["size"] != new[name]["size"]:
            return f"{name!r} has {new[name]['size']} bytes and had {old[name]['size']}"
        if old[name]["sha256"] != new[name]["sha256"]:
            return f"{name!r} has other contents of the same size"
    added = [name for name in new if name not in old]
    return f"{added[0]!r} is new" if added else f"the order of the {len(new_files)} files is another"


def _file_identity(source: _Source) -> dict[str, Any]:
    if source.is_stream or source.path is None:
        return {"name": source.name, "size": None, "sha256": None}
    with _named_errors(source), source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"name": source.name, "size": file.tell(), "sha256": digest.hexdigest()}


def _as_paths(source: object) -> list[str]:
    """The paths that the user gave, as strings."""
    entries: Sequence[object] = source if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    paths: list[str] = []
    for entry in entries:
        path = os.fspath(entry) if isinstance(entry, str | os.PathLike) else None
        if not isinstance(path, str):
            raise InputError(f"source={entry!r} is neither a path nor an iterator of strings")
        paths.append(path)
    if not paths:
        raise InputError("source names no file: give the path of a text file or a folder, or '-' for standard input")
    if paths.count(STDIN) > 1:
        raise InputError("source names standard input ('-') more than once: it can be read once only")
    return paths


def _find_sources(paths: list[str], encoding: str) -> list[_Source]:
    """All the files that the paths stand for; the beginning of each that can be read twice is decoded as a check."""
    sources: list[_Source] = []
    for path in paths:
        sources += [_Source(None, STDIN, is_stream=True)] if path == STDIN else _look_up(Path(path), encoding)
    texts = [source.is_stream or _sniff(source, encoding) for source in sources]
    if not any(texts):
        raise _empty(", ".join(map(str, sources[:3])))
    return sources


def _look_up(path: Path, encoding: str) -> list[_Source]:
    """The file, or the text files of the folder, at a path."""
    source = _Source(path, path.name)
    with _named_errors(source):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _text_files_of(path, encoding)
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise InputError(
            f"{source} is a device or a socket, not a text: give a file, a folder, or '-' for standard input"
        )
    return [_Source(path, path.name, is_stream=stat.S_ISFIFO(mode))]


def _text_files_of(folder: Path, encoding: str) -> list[_Source]:
    files = sorted(_visible_files(folder), key=lambda file: file.name)
    texts = [file for file in files if _is_text(file, encoding)]
    if not texts:
        raise InputError(
            f"{str(folder)!r} holds no readable text: {len(files)} files in it are all empty or binary; "
            "give a folder with text files (.gz too)"
        )
    return texts


def _visible_files(folder: Path) -> Iterator[_Source]:
    def fail(error: OSError) -> None:
        raise error

    with _named_errors(_Source(folder, folder.name)):
        for parent, folders, names in os.walk(folder, onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = [Path(parent, name) for name in names if not name.startswith(".")]
            yield from (_Source(path, path.relative_to(folder).as_posix()) for path in paths if path.is_file())


def _is_text(source: _Source, encoding: str) -> bool:
    """Whether a file in a folder has text in it; text of another encoding is an error, not passed over."""
    try:
        return bool(_sniff(source, encoding))
    except _BinaryError:
        return False


def _sniff(source: _Source, encoding: str) -> str:
    """The text that a file begins with."""
    with _open(source) as stream:
        return next(_decode(source, stream, encoding, _SNIFF_BYTES), "")


def _concatenate(sources: list[_Source], encoding: str, chunk_chars: int) -> Iterator[str]:
    for source in sources:
        chunk = ""
        with _open(source) as stream:
            for chunk in _decode(source, stream, encoding, chunk_chars):
                yield chunk
        if len(sources) > 1 and chunk and not chunk.endswith("\n"):
            yield "\n"


@contextmanager
def _open(source: _Source) -> Generator[IO[bytes]]:
    """The bytes of the text: unzipped; standard input is not closed."""
    if source.path is None:
        if sys.stdin is None:
            raise InputError("standard input is closed: give the path of a text file or a folder")
        yield sys.stdin.buffer
        return
    with _named_errors(source):
        file = source.path.open("rb")
    with file:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if source.path.suffix == ".gz" else file


def _decode(source: _Source, stream: IO[bytes], encoding: str, chunk_bytes: int) -> Iterator[str]:
    """Decode a stream of bytes piece by piece. No encoding has more characters than bytes."""
    decoder = codecs.getincrementaldecoder(encoding)(errors="strict")
    num_bytes, is_first = 0, True
    while True:
        with _named_errors(source):
            data: bytes = stream.read1(chunk_bytes)  # pyright: ignore[reportAttributeAccessIssue]
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset = num_bytes - pending + error.start
            raise _undecodable(source, encoding, offset, error, data) from None
        num_bytes += len(data)
        if is_first and text:
            text, is_first = text.removeprefix("\ufeff"), False
        if "\0" in text:
            raise _BinaryError(
                f"{source} is binary, not text: there is a NUL in it before byte {num_bytes}; "
                "give a text file (if it is UTF-16 or UTF-32, say so with --encoding)"
            )
        if text:
            yield text
        if not data:
            return


class _BinaryError(InputError):
    """Not text in any encoding."""


def _undecodable(source: _Source, encoding: str, offset: int, error: UnicodeDecodeError, data: bytes) -> InputError:
    if _CONTROL_BYTES.search(data):
        return _BinaryError(f"{source} is binary, not text: byte {offset} is not {encoding}; give a text file")
    what = f"byte {offset} (0x{error.object[error.start]:02x})" if error.start < len(error.object) else f"byte {offset}"
    return InputError(
        f"{source} is not {encoding} text: {what}: {error.reason}; "
        "name its encoding with --encoding (such as latin-1, cp1252, utf-16), or convert it"
    )


def _codec_name(encoding: str) -> str:
    """The encoding's usual name, if it is one that can be decoded piece by piece."""
    try:
        codec = codecs.lookup(encoding)
        codecs.getincrementaldecoder(encoding)
        io.TextIOWrapper(io.BytesIO(), encoding)  # refuses codecs that are no text encodings, such as base64
    except (LookupError, ValueError):
        raise InputError(
            f"encoding={encoding!r} is not a known text encoding; such as utf-8, utf-16, latin-1, cp1252"
        ) from None
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


@contextmanager
def _named_errors(source: _Source) -> Generator[None]:
    """Turn what the operating system and gzip say into an error that names the file and what to do."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"{source} does not exist: give the path of a text file or a folder, or '-' for standard input"
        ) from None
    except PermissionError as error:
        where = repr(str(error.filename)) if error.filename else str(source)
        raise InputError(
            f"{where} cannot be read: permission denied; change its permissions, or give other files"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{source} is not a whole gzip file ({error}): unpack it with gzip to see what is left"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source} cannot be read: {reason}; give a text file, a folder, or '-'") from None


def _chunks_of(file: io.TextIOBase, chunk_chars: int) -> Iterator[str]:
    try:
        while chunk := file.read(chunk_chars):
            yield chunk
    except UnicodeDecodeError as error:
        raise InputError(
            f"the open file is not {error.encoding} text: {error.reason}; open it with its encoding"
        ) from None


def _checked_strings(source: Iterator[str]) -> Iterator[str]:
    for chunk in source:
        if not isinstance(chunk, str):
            raise InputError(f"the iterator gave {type(chunk).__name__} where text is wanted: give strings")
        yield chunk


def _not_empty(chunks: Iterator[str], what: str) -> Iterator[str]:
    is_empty = True
    for chunk in chunks:
        is_empty = is_empty and not chunk
        yield chunk
    if is_empty:
        raise _empty(what)


def _empty(what: str) -> InputError:
    return InputError(f"{what} is empty: there is no text to read; give a file with text in it")
