"""Writing files so that nothing is lost: a reader finds the old file or the new one, whole, never a part of one."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError, RecurrentMemoryError

_UNCHANGED = "Nothing that was there before has been changed."

# Only writing fails in these ways, so they concern our file even where the exception names none.
_WHEN_WRITING = {
    errno.ENOSPC: "no space is left on the disk. Free some space, or choose a folder on another disk.",
    errno.EDQUOT: "your disk quota is used up. Free some space, or choose a folder on another disk.",
    errno.EFBIG: "the file is larger than the file system or your limits (ulimit -f) allow. Choose another folder.",
    errno.EROFS: "the file system is read-only. Choose another folder.",
}
_WHEN_NAMED = {
    errno.EACCES: "there is no permission to write there. Choose another folder, or change the permissions.",
    errno.EPERM: "writing there is not permitted. Choose another folder, or change the permissions.",
    errno.EIO: "the disk reports an error. Check the disk, or choose a folder on another one.",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one.",
}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, its content becomes ``path`` in one step.

    The content is on the disk before it takes the place of an older file, so that neither an exception, nor Ctrl-C, nor
    ``kill -9``, nor a power cut leaves a damaged file. An exception removes the temporary file; after ``kill -9`` it
    stays behind as ``.<name>.<8 hex digits>.tmp``. Links are followed; an older file keeps its permissions.

    An ``OSError`` that is about another file, as when the block reads its input, passes unchanged.

    Raises:
        OutputError: the file cannot be written: the disk is full or read-only, there is no permission, the folder does
            not exist, or ``path`` is a folder or a device.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> with atomic_write(path) as temporary:
        ...     _ = temporary.write_text("42")
        >>> path.read_text()
        '42'
    """
    target = Path(os.path.realpath(path))
    _check_place(Path(path))
    # Cut, since a name near the file system's limit must not pass it for being temporary.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        mode = _create(temporary)
        if target.exists():
            mode = target.stat().st_mode
        yield temporary
        # Some writers (safetensors) put a file of their own, with mode 600, in the place of the one they are given.
        # A file system without permissions refuses to set them, and needs none.
        with suppress(PermissionError):
            os.chmod(temporary, mode & 0o777)
        _sync(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        code = _code_of(error, lambda name: name in (str(temporary), str(target)))
        if code is None:
            raise
        raise _output_error(path, code) from error


@contextmanager
def writing_into(folder: str | os.PathLike[str]) -> Generator[None]:
    """Say in one line that the disk is full, whoever was writing into ``folder`` when it was: safetensors, tokenizers, torch.

    Raises:
        OutputError: the disk is full or read-only, a quota is used up, or a file is too large.

    Example:
        >>> with writing_into("model"):
        ...     raise OSError(errno.EROFS, "Read-only file system", "model/weights")
        Traceback (most recent call last):
            ...
        recurrent_memory.errors.OutputError: Cannot write into 'model': the file system is read-only. Choose another folder.
    """
    place = Path(os.path.realpath(folder))
    try:
        yield
    except Exception as error:
        code = _code_of(error, lambda name: Path(os.path.realpath(name)).is_relative_to(place))
        if code not in _WHEN_WRITING:
            raise
        raise _with_code(OutputError(f"Cannot write into '{folder}': {_WHEN_WRITING[code]}"), code) from error


def why_not_written(error: BaseException) -> str | None:
    """What is wrong with the disk, if that is what the error says; None if it is about something else."""
    code = _code_of(error, lambda _name: True)
    return _WHEN_WRITING.get(code) if code is not None else None


def check_writable(path: str | os.PathLike[str], force: bool = False) -> None:
    """Find out, before hours of work, whether ``path`` can be written.

    Raises:
        OutputError: ``path`` exists and ``force`` is false, or it cannot be written at all, as in :func:`atomic_write`.

    Example:
        >>> check_writable("/")
        Traceback (most recent call last):
            ...
        recurrent_memory.errors.OutputError: Cannot write '/': it is a folder. Give the name of a file.
    """
    _check_place(Path(path))
    if os.path.lexists(path) and not force:
        raise OutputError(
            f"Cannot write '{path}': it exists already. Choose another name, or overwrite it with --force (force=True)."
        )


def _check_place(path: Path) -> None:
    folder = Path(os.path.realpath(path)).parent
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        raise OutputError(
            f"Cannot write '{path}': the folder '{folder}' does not exist. Create it: mkdir -p '{folder}'"
        ) from None
    except NotADirectoryError:
        is_folder = False
    except OSError as error:
        raise _output_error(path, error.errno or errno.EIO) from error
    if not is_folder:
        raise OutputError(f"Cannot write '{path}': '{folder}' is not a folder. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"Cannot write '{path}': the folder '{folder}' is write-protected. "
            "Choose another folder, or change its permissions."
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _output_error(path, error.errno or errno.EIO) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"Cannot write '{path}': it is a folder. Give the name of a file.")
    if not stat.S_ISREG(mode):
        # Replacing /dev/null by a file would break the machine.
        raise OutputError(f"Cannot write '{path}': it is a device or a pipe. Give the name of an ordinary file.")
    if not os.access(path, os.W_OK):
        # A rename would replace it all the same, which is not what its owner meant.
        raise OutputError(f"Cannot write '{path}': it is write-protected. Choose another name, or chmod u+w '{path}'")


def _create(temporary: Path) -> int:
    """Create the file, whose mode then is what the user's umask says."""
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def _sync(path: Path, flags: int = os.O_RDWR) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    # The new file is whole and in place by now; not every system lets a folder be opened or synced.
    with suppress(OSError):
        _sync(folder, os.O_RDONLY)


def _code_of(error: BaseException, is_ours: Callable[[str], bool]) -> int | None:
    """The errno with which writing our files failed, or None if ``error`` is about something else."""
    if isinstance(error, RecurrentMemoryError):
        return None
    if isinstance(error, OSError):
        code = error.errno
        if error.filename is not None:
            return code if is_ours(str(error.filename)) else None
    elif isinstance(error, Exception) and (match := re.search(r"\(os error (\d+)\)", str(error))):
        # safetensors and tokenizers are written in Rust and raise exceptions of their own.
        code = int(match[1])
    else:
        return None
    return code if code in _WHEN_WRITING else None


def _output_error(path: str | os.PathLike[str], code: int) -> OutputError:
    reason = _WHEN_WRITING.get(code) or _WHEN_NAMED.get(code) or f"{os.strerror(code)}. Choose another place."
    return _with_code(OutputError(f"Cannot write '{path}': {reason} {_UNCHANGED}"), code)


def _with_code(error: OutputError, code: int) -> OutputError:
    error.errno = code
    return error
