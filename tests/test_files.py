"""Writing a file atomically: what is there afterwards, whatever happens in between."""

import doctest
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import recurrent_memory.files
from recurrent_memory.errors import InputError, OutputError
from recurrent_memory.files import atomic_write, check_writable, writing_into

OLD, NEW = "the old text", "the new text"
UNCHANGED = "Nothing that was there before has been changed."


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "book.safetensors"
    path.write_text(OLD)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def message_of(error: pytest.ExceptionInfo[OutputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def failing(code: int):
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_new_file_is_written_and_nothing_else(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new.txt") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text(NEW)
        assert not (tmp_path / "new.txt").exists()
    assert (tmp_path / "new.txt").read_text() == NEW
    assert names(tmp_path) == ["new.txt"]


def test_the_old_file_stays_until_the_block_ends(target: Path) -> None:
    with atomic_write(str(target)) as temporary:
        temporary.write_text(NEW)
        assert target.read_text() == OLD
    assert target.read_text() == NEW
    assert names(target.parent) == [target.name]


def test_the_content_is_on_the_disk_before_it_takes_the_name(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def seen_replace(source: Path, destination: Path) -> None:
        calls.append("replace")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    with atomic_write(target) as temporary:
        temporary.write_text(NEW)
    assert calls == ["sync file", "replace", "sync folder"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), InputError("no text")])
def test_an_exception_passes_and_leaves_the_old_file_alone(target: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, atomic_write(target) as temporary:
        temporary.write_text(NEW)
        raise error
    assert caught.value is error
    assert target.read_text() == OLD
    assert names(target.parent) == [target.name]


def test_an_exception_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "new.txt") as temporary:
        temporary.write_text(NEW)
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without SIGKILL")
def test_a_killed_process_leaves_the_old_file_alone(target: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from recurrent_memory.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert target.read_text() == OLD
    (left,) = (name for name in names(target.parent) if name != target.name)
    assert left.startswith(f".{target.name}.")
    assert left.endswith(".tmp")


def test_two_writers_of_one_file_do_not_meet(target: Path) -> None:
    with atomic_write(target) as first, atomic_write(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # its block ends last
    assert names(target.parent) == [target.name]


def test_a_link_stays_a_link(target: Path) -> None:
    link = target.parent / "link"
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        temporary.write_text(NEW)
    assert link.is_symlink()
    assert target.read_text() == NEW


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with atomic_write(path) as temporary:
        temporary.write_text(NEW)
    assert path.read_text() == NEW


@pytest.mark.parametrize("exists", [False, True])
def test_permissions_are_those_of_the_older_file_or_of_the_umask(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "new.txt"
    path.with_name("plain").write_text("")
    if exists:
        path.write_text(OLD)
        path.chmod(0o604)
    with atomic_write(path) as temporary:
        # As safetensors does: another file, for the owner's eyes only, takes the place.
        other = tmp_path / "other"
        other.write_text(NEW)
        other.chmod(0o600)
        other.replace(temporary)
    expected = 0o604 if exists else stat.S_IMODE(path.with_name("plain").stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == expected


@pytest.mark.parametrize("write", ["atomic_write", "check_writable"])
class TestAPlaceThatCannotBe:
    def refuse(self, write: str, path: Path) -> str:
        with pytest.raises(OutputError) as error:
            if write == "check_writable":
                check_writable(path, force=True)
            else:
                with atomic_write(path):
                    pytest.fail("the block ran")
        return message_of(error)

    def test_missing_folder(self, write: str, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "new.txt"
        expected = (
            f"Cannot write '{path}': the folder '{path.parent}' does not exist. Create it: mkdir -p '{path.parent}'"
        )
        assert self.refuse(write, path) == expected
        assert names(tmp_path) == []

    def test_file_for_a_folder(self, write: str, target: Path) -> None:
        expected = f"Cannot write '{target / 'new.txt'}': '{target}' is not a folder. Choose another place."
        assert self.refuse(write, target / "new.txt") == expected
        below = target / "below"
        expected = f"Cannot write '{below / 'new.txt'}': '{below}' is not a folder. Choose another place."
        assert self.refuse(write, below / "new.txt") == expected

    def test_folder(self, write: str, tmp_path: Path) -> None:
        assert self.refuse(write, tmp_path) == f"Cannot write '{tmp_path}': it is a folder. Give the name of a file."

    def test_too_long_a_name(self, write: str, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 300)
        assert self.refuse(write, path) == (
            f"Cannot write '{path}': the name is too long. Choose a shorter one. {UNCHANGED}"
        )

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
    def test_pipe(self, write: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert self.refuse(write, tmp_path / "pipe") == (
            f"Cannot write '{tmp_path / 'pipe'}': it is a device or a pipe. Give the name of an ordinary file."
        )
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    # root may write everywhere, so what the system answers anyone else is put in its mouth
    def test_protected_folder(self, write: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != target.parent)
        assert self.refuse(write, target) == (
            f"Cannot write '{target}': the folder '{target.parent}' is write-protected. "
            "Choose another folder, or change its permissions."
        )

    def test_protected_file(self, write: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != target)
        expected = f"Cannot write '{target}': it is write-protected. Choose another name, or chmod u+w '{target}'"
        assert self.refuse(write, target) == expected
        assert target.read_text() == OLD

    def test_unreachable_folder(self, write: str, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        path = tmp_path / "loop" / "new.txt"
        assert self.refuse(write, path) == (
            f"Cannot write '{path}': {os.strerror(errno.ELOOP)}. Choose another place. {UNCHANGED}"
        )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space is left on the disk. Free some space, or choose a folder on another disk."),
        (errno.EDQUOT, "your disk quota is used up. Free some space, or choose a folder on another disk."),
        (
            errno.EFBIG,
            "the file is larger than the file system or your limits (ulimit -f) allow. Choose another folder.",
        ),
        (errno.EROFS, "the file system is read-only. Choose another folder."),
        (errno.EIO, "the disk reports an error. Check the disk, or choose a folder on another one."),
    ],
)
def test_a_disk_that_fails_at_the_end(target: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str) -> None:
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(OutputError) as error, atomic_write(target) as temporary:
        temporary.write_text(NEW)
    assert message_of(error) == f"Cannot write '{target}': {reason} {UNCHANGED}"
    assert error.value.errno == code
    assert target.read_text() == OLD
    assert names(target.parent) == [target.name]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EACCES, "there is no permission to write there. Choose another folder, or change the permissions."),
        (errno.EPERM, "writing there is not permitted. Choose another folder, or change the permissions."),
        (errno.ENAMETOOLONG, "the name is too long. Choose a shorter one."),
        (errno.EMFILE, f"{os.strerror(errno.EMFILE)}. Choose another place."),
    ],
)
def test_a_file_that_cannot_be_created(target: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str) -> None:
    def refuse(path: Path, *arguments: object) -> None:
        raise OSError(code, os.strerror(code), path)

    with monkeypatch.context() as patch, pytest.raises(OutputError) as error:
        patch.setattr(os, "open", refuse)
        with atomic_write(target):
            pytest.fail("the block ran")
    assert message_of(error) == f"Cannot write '{target}': {reason} {UNCHANGED}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "rust"],
)
def test_a_disk_that_fails_in_the_block(target: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match="no space is left on the disk") as caught, atomic_write(target):
        raise error
    assert caught.value.__cause__ is error
    assert target.read_text() == OLD
    assert names(target.parent) == [target.name]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "input.txt"),
        PermissionError(errno.EACCES, "Permission denied", "input.txt"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("No such file or directory (os error 2)"),
        OutputError("the block had its own trouble"),
    ],
    ids=lambda error: str(error),
)
def test_an_error_about_another_file_passes_unchanged(target: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, atomic_write(target):
        raise error
    assert caught.value is error
    assert names(target.parent) == [target.name]


def test_check_writable_passes_a_new_file_and_makes_none(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.txt")
    check_writable(tmp_path / "new.txt", force=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("dangling", [False, True], ids=["file", "dangling link"])
def test_check_writable_refuses_what_exists_without_force(tmp_path: Path, dangling: bool) -> None:
    path = tmp_path / "book"
    if dangling:
        path.symlink_to("nowhere")
    else:
        path.write_text(OLD)
    with pytest.raises(OutputError) as error:
        check_writable(path)
    assert message_of(error) == (
        f"Cannot write '{path}': it exists already. Choose another name, or overwrite it with --force (force=True)."
    )
    check_writable(path, force=True)
    assert os.path.lexists(path)


def in_a_small_file_system(folder: Path, options: str, script: str) -> str:
    """What the script prints, with ``folder`` a file system of its own that vanishes with the process."""
    mount = f'mount -t tmpfs -o {options} tmpfs "$1"'
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "sh", "-c", mount, "sh", folder], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    command = [unshare, "-rm", "sh", "-c", f'{mount} && "$2" -c "$3" "$1"', "sh", folder, sys.executable, script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from recurrent_memory.errors import OutputError
from recurrent_memory.files import atomic_write
path = Path(sys.argv[1], "book")
path.write_bytes(b"old")
try:
    with atomic_write(path) as temporary:
        temporary.write_bytes(bytes(1_000_000))
except OutputError as error:
    print(error.errno, path.read_bytes(), os.listdir(path.parent))
"""
    assert in_a_small_file_system(tmp_path, "size=64k", script) == f"{errno.ENOSPC} b'old' ['book']"


def test_a_disk_that_is_really_read_only(tmp_path: Path) -> None:
    script = """
import sys
from recurrent_memory.errors import OutputError
from recurrent_memory.files import atomic_write, check_writable
for write in (check_writable, lambda path: atomic_write(path).__enter__()):
    try:
        write(sys.argv[1] + "/book")
    except OutputError as error:
        print(str(error).split("'")[-1])
"""
    expected = " is write-protected. Choose another folder, or change its permissions."
    assert in_a_small_file_system(tmp_path, "ro", script).splitlines() == [expected.strip(), expected]


@pytest.mark.parametrize("name", ["weights", "../inputs"])
def test_a_disk_that_is_full_while_others_write_into_a_folder(tmp_path: Path, name: str) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "model" / name))
    expected = OutputError if name == "weights" else OSError
    with pytest.raises(expected) as caught, writing_into(tmp_path / "model"):
        raise error
    if expected is OutputError:
        reason = "no space is left on the disk. Free some space, or choose a folder on another disk."
        assert message_of(caught) == f"Cannot write into '{tmp_path / 'model'}': {reason}"
    else:
        assert caught.value is error


def test_an_error_that_says_nothing_of_the_disk_passes_unchanged(tmp_path: Path) -> None:
    error = ValueError("5 layers")
    with pytest.raises(ValueError, match="5 layers") as caught, writing_into(tmp_path):
        raise error
    assert caught.value is error


def test_the_docstrings_are_true() -> None:
    result = doctest.testmod(recurrent_memory.files)
    assert result.attempted > 0
    assert result.failed == 0
