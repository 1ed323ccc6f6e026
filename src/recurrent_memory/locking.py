"""One process at a time in a folder: two that write there would take each other's half-done work for their own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import OutputError

NAME = ".lock"


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Hold a folder, which is made if it is not there, for as long as the block runs.

    The operating system lets go of it when the process ends, in whatever way. On a file system that knows no locks nothing
    is held.

    Raises:
        OutputError: if another process holds it, or it cannot be made.

    Example:
        >>> with alone_in(Path("results/detect")):
        ...     write()
    """
    lock = FileLock(folder / NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            f"{folder}: another process is writing there; wait until it has ended, or give another folder"
        ) from None
    except NotImplementedError:
        pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error
    try:
        yield
    finally:
        if lock.is_locked:
            (folder / NAME).unlink(missing_ok=True)
        lock.release()
