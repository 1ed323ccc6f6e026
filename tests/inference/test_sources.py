"""Text from files, folders, pipes and iterators: the same characters, in constant memory, or one clear line."""

import codecs
import gzip
import io
import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurrent_memory.errors import InputError, SourceChangedError
from recurrent_memory.inference import sources
from recurrent_memory.inference.sources import check_identity, iter_text, source_identity

anything = settings(
    deadline=None, database=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1)


def text_of(source: Any, **options: Any) -> str:
    return "".join(iter_text(source, **options))


def error_of(source: Any, **options: Any) -> str:
    """The one line that says why a source cannot be read."""
    with pytest.raises(InputError) as error:
        text_of(source, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_stdin(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return set_stdin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything in it; its text is that of b/z.txt, b.txt.gz, ba.txt, c.md."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("one")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two\n"))
    (tmp_path / "ba.txt").write_bytes(codecs.BOM_UTF8 + b"three")
    (tmp_path / "c.md").write_text("four\n\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "short.bin").write_bytes(b"\xff\x01")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    return tmp_path


FOLDER_TEXT = "two\none\nthree\nfour\n\n"  # "b.txt.gz" < "b/z.txt" < "ba.txt" < "c.md"

# The same characters


@anything
@given(
    text=texts, chunk_chars=st.integers(1, 20), encoding=st.sampled_from(["utf-8", "utf-16", "utf-32-be", "gb18030"])
)
def test_any_text_in_any_chunks(tmp_path: Path, text: str, chunk_chars: int, encoding: str) -> None:
    data = text.encode(encoding)
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    for name in ("a.txt", "a.txt.gz"):
        chunks = list(iter_text(tmp_path / name, encoding=encoding, chunk_chars=chunk_chars))
        assert "".join(chunks) == text
        assert all(0 < len(chunk) <= chunk_chars for chunk in chunks)


def test_line_ends_are_not_translated(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n\n")
    assert text_of(str(tmp_path / "a.txt")) == "a\r\nb\rc\n\n"


def test_byte_order_mark_is_dropped_at_the_beginning_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "a\ufeffb".encode())
    for chunk_chars in (1, 2, 100):
        assert text_of(tmp_path / "a.txt", chunk_chars=chunk_chars) == "a\ufeffb"
    assert text_of(tmp_path / "a.txt", encoding="utf-8-sig") == "a\ufeffb"


def test_folder_is_read_in_the_order_of_paths(folder: Path) -> None:
    assert text_of(folder) == FOLDER_TEXT


def test_several_files_are_each_ended_by_a_newline(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two\n"), ("c", ""), ("d", "three")):
        (tmp_path / name).write_text(text)
    assert text_of([tmp_path / name for name in "dabc"]) == "three\none\ntwo\n"
    assert text_of([tmp_path / "a"]) == "one"


def test_standard_input(stdin: Any, tmp_path: Path) -> None:
    stdin("café 中文".encode())
    assert text_of("-", chunk_chars=1) == "café 中文"
    (tmp_path / "a").write_text("one")
    stdin(b"two")
    assert text_of([tmp_path / "a", "-"]) == "one\ntwo\n"


def test_a_file_called_minus_is_not_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "-").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert text_of("./-") == "text"


def test_named_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=("café".encode() * 50000,))
    writer.start()
    assert text_of(tmp_path / "pipe") == "café" * 50000
    writer.join()


def test_iterator_and_open_file(tmp_path: Path) -> None:
    assert text_of(iter(["a", "", "b"])) == "ab"
    (tmp_path / "a").write_text("x" * 1000)
    with open(tmp_path / "a") as file:
        assert [len(chunk) for chunk in iter_text(file, chunk_chars=300)] == [300, 300, 300, 100]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_does_not_grow_with_the_line(tmp_path: Path, suffix: str) -> None:
    """A line of 20 MB takes what a line of 1 MB takes."""
    peaks: list[int] = []
    for num_mb in (1, 1, 20):  # the first one fills caches
        path = tmp_path / f"{num_mb}{suffix}"
        with gzip.open(path, "wb", compresslevel=1) if suffix else path.open("wb") as file:
            for _ in range(num_mb):
                file.write("a-é-中-".encode() * 100_000)
        tracemalloc.start()
        assert sum(map(len, iter_text(path))) == 600_000 * num_mb
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 100_000


# Bad input


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "missing.txt"
    assert error_of(path) == (
        f"'{path}' does not exist: give the path of a text file or a folder, or '-' for standard input"
    )


def test_errors_come_before_any_text(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("text")
    with pytest.raises(InputError, match="does not exist"):
        iter_text([tmp_path / "good", tmp_path / "missing"])


@pytest.mark.parametrize("name", ["a.txt", "bom.txt", "a.gz"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    content = {"a.txt": b"", "bom.txt": codecs.BOM_UTF8, "a.gz": gzip.compress(b"")}[name]
    (tmp_path / name).write_bytes(content)
    path = tmp_path / name
    assert error_of(path) == f"'{path}' is empty: there is no text to read; give a file with text in it"
    assert "is empty" in error_of([path, path])


def test_empty_standard_input(stdin: Any) -> None:
    stdin(b"")
    assert error_of("-").startswith("standard input is empty: there is no text to read")


def test_empty_iterator() -> None:
    assert error_of(iter([])).startswith("the iterator is empty")
    assert error_of(io.StringIO("")).startswith("the open file is empty")


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert error_of("-").startswith("standard input is closed: give the path")


def test_standard_input_twice() -> None:
    assert "more than once" in error_of(["-", "-"])


@pytest.mark.parametrize("data", [b"\x7fELF\0\0", b"text" * 40000 + b"\0", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_binary(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    message = error_of(tmp_path / "a.bin")
    assert message.startswith(f"'{tmp_path / 'a.bin'}' is binary, not text")
    assert "give a text file" in message


def test_utf16_without_mark_points_to_the_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Mary".encode("utf-16-le"))
    assert "if it is UTF-16 or UTF-32, say so with --encoding" in error_of(tmp_path / "a.txt")
    assert text_of(tmp_path / "a.txt", encoding="utf-16-le") == "Mary"


@pytest.mark.parametrize("num_before", [0, 3, 100_001])
@pytest.mark.parametrize("chunk_chars", [7, 65536])
def test_wrong_encoding_names_the_byte(tmp_path: Path, num_before: int, chunk_chars: int) -> None:
    path = tmp_path / "a.txt"
    for before in (b"x" * num_before, codecs.BOM_UTF8 + b"x" * (num_before - 3)) if num_before else (b"",):
        path.write_bytes(before + b"\xe9t\xe9")
        assert error_of(path, chunk_chars=chunk_chars) == (
            f"'{path}' is not utf-8 text: byte {num_before} (0xe9): invalid continuation byte; "
            "name its encoding with --encoding (such as latin-1, cp1252, utf-16), or convert it"
        )
    assert text_of(path, encoding="latin-1").endswith("été")


@pytest.mark.parametrize("chunk_chars", [1, 65536])
def test_file_that_ends_within_a_character(tmp_path: Path, chunk_chars: int) -> None:
    (tmp_path / "a.txt").write_bytes("caf中".encode()[:-1])
    assert "byte 3 (0xe4): unexpected end of data" in error_of(tmp_path / "a.txt", chunk_chars=chunk_chars)


@pytest.mark.parametrize("encoding", ["no-such-encoding", "base64", "", "a\0b"])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    assert error_of(tmp_path, encoding=encoding) == (
        f"encoding={encoding!r} is not a known text encoding; such as utf-8, utf-16, latin-1, cp1252"
    )


@pytest.mark.parametrize("damage", ["truncated", "changed", "not gzip"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    data = bytearray(gzip.compress(os.urandom(100_000).hex().encode()))
    if damage == "truncated":
        del data[50_000:]
    elif damage == "changed":
        data[-6] ^= 1
    else:
        data[:] = b"plain text"
    (tmp_path / "a.gz").write_bytes(data)
    message = error_of(tmp_path / "a.gz")
    assert message.startswith(f"'{tmp_path / 'a.gz'}' is not a whole gzip file (")
    assert message.endswith("unpack it with gzip to see what is left")


def test_folder_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0")
    (tmp_path / ".hidden").write_text("text")
    assert error_of(tmp_path) == (
        f"'{tmp_path}' holds no readable text: 1 files in it are all empty or binary; "
        "give a folder with text files (.gz too)"
    )


def test_folder_with_text_in_another_encoding_is_not_read_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_bytes("été".encode("latin-1"))
    assert f"'{tmp_path / 'b.txt'}' is not utf-8 text: byte 0 (0xe9)" in error_of(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("name", ["a.txt", ""])
def test_without_permission(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / name).chmod(0)
    message = error_of(folder)
    (folder / name).chmod(0o700)
    assert (
        message == f"'{folder / name}' cannot be read: permission denied; change its permissions, or give other files"
    )


@pytest.mark.parametrize("call", ["os.scandir", "pathlib.Path.open", "pathlib.Path.stat"])
def test_permission_denied(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the test before, for the superuser."""
    (tmp_path / "a.txt").write_text("text")

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(InputError) as error:
        iter_text(tmp_path)
    monkeypatch.undo()
    assert "cannot be read: permission denied; change its permissions, or give other files" in str(error.value)


def test_devices_and_sockets(tmp_path: Path) -> None:
    assert error_of("/dev/zero").startswith("'/dev/zero' is a device or a socket, not a text: give a file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "s"))
        assert "is a device or a socket" in error_of(tmp_path / "s")


def test_strange_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert "cannot be read: Not a directory" in error_of(tmp_path / "a.txt" / "b")
    assert "cannot be read: embedded null byte" in error_of("a\0b")
    assert "cannot be read: File name too long" in error_of("a" * 5000)
    assert "line\\nbreak' does not exist" in error_of("line\nbreak")


@pytest.mark.parametrize("source", [[], [3], 3, b"a.txt", None])
def test_what_is_no_source(source: Any) -> None:
    assert error_of(source).startswith("source")


def test_iterator_of_something_else() -> None:
    assert error_of(iter(["text", b"bytes"])) == "the iterator gave bytes where text is wanted: give strings"


def test_chunk_chars_must_be_positive(tmp_path: Path) -> None:
    assert error_of(tmp_path, chunk_chars=0) == "chunk_chars=0 is not a positive number of characters"


def test_reading_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    (tmp_path / "a").write_text("text")
    monkeypatch.setattr(sources.Path, "open", lambda *_: Failing())
    assert f"'{tmp_path / 'a'}' cannot be read: Input/output error" in error_of(tmp_path / "a")


def test_open_file_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xe9")
    with open(tmp_path / "a", encoding="utf-8") as file:
        assert "the open file is not utf-8 text" in error_of(file)


# Identity


def test_identity_of_a_folder(folder: Path) -> None:
    files = source_identity(folder)["files"]
    assert [file["name"] for file in files] == ["b.txt.gz", "b/z.txt", "ba.txt", "c.md"]
    assert files[1] == {
        "name": "b/z.txt",
        "size": 3,
        "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
    }


def test_identity_stays_when_the_folder_moves(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    old = source_identity(str(folder))
    check_identity(old, source_identity(folder.rename(tmp_path_factory.mktemp("new") / "folder")))


def append(folder: Path) -> None:
    with (folder / "b" / "z.txt").open("a") as file:
        file.write("x")


CHANGES = {
    "'b/z.txt' has 4 bytes and had 3": append,
    "'b/z.txt' has other contents of the same size": lambda folder: (folder / "b" / "z.txt").write_text("eno"),
    "'c.md' is gone": lambda folder: (folder / "c.md").unlink(),
    "'d.md' is new": lambda folder: (folder / "d.md").write_text("text"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_are_refused(folder: Path, what: str) -> None:
    old = source_identity(folder)
    CHANGES[what](folder)
    with pytest.raises(SourceChangedError) as error:
        check_identity(old, source_identity(folder))
    assert str(error.value) == (
        f"the text has changed since the reading began: {what}; give the same text, or start again with --force"
    )


def test_order_counts(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    with pytest.raises(SourceChangedError, match="the order of the 2 files is another"):
        check_identity(source_identity(paths), source_identity(paths[::-1]))


def test_streams_cannot_be_read_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in ("-", tmp_path / "pipe"):
        identity = source_identity(source)
        assert identity["files"][0]["sha256"] is None
        with pytest.raises(SourceChangedError, match="is a stream and cannot be read again: resume needs a file"):
            check_identity(identity, identity)


def test_identity_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    with pytest.raises(InputError, match="not utf-8"):
        source_identity(tmp_path)
    assert source_identity(tmp_path, encoding="latin-1")["files"][0]["size"] == 1


def test_generators_leave_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x" * 1000))
    chunks: Iterator[str] = iter_text(tmp_path / "a.gz", chunk_chars=10)
    assert next(chunks) == "x" * 10
    del chunks  # a file left open would be a ResourceWarning, an error
