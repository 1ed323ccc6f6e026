"""A reading that is interrupted is kept, and goes on to the same state, byte for byte; nothing is overwritten."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import recurrent_memory.files
from recurrent_memory import (
    ConfigError,
    InputError,
    MemoryReader,
    MemoryState,
    OutputError,
    RecurrentMemoryModel,
    SourceChangedError,
    StateError,
    StateFileError,
    StateModelMismatchError,
)
from recurrent_memory.inference.journal import partial_path, texts_of
from tiny_models import S, prose, save_tiny_model, tiny_model, tiny_tokenizer

TEXT = prose(60)
BLOCK = 4 * S


@pytest.fixture
def model() -> RecurrentMemoryModel:
    return tiny_model()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def reader(model: RecurrentMemoryModel, said: list[str]) -> MemoryReader:
    return MemoryReader(model, tiny_tokenizer(), tokens_per_block=BLOCK, save_every_s=0, notify=said.append)


def interrupt_after(
    model: RecurrentMemoryModel, blocks: int, error: type[BaseException] = KeyboardInterrupt
) -> Callable[[], None]:
    """Let the model read so many blocks, then raise; returns how to mend it."""
    calls = [0]

    def read(ids: Tensor, **kwargs: Any) -> MemoryState:
        calls[0] += 1
        if calls[0] > blocks:
            raise error
        return RecurrentMemoryModel.read(model, ids, **kwargs)

    object.__setattr__(model, "read", read)
    return lambda: object.__delattr__(model, "read")


def interrupted(reader: MemoryReader, source: Any, out: Path, blocks: int = 3, **options: Any) -> str:
    mend = interrupt_after(reader.model, blocks)
    with pytest.raises(KeyboardInterrupt) as error:
        reader.read(source, out=out, **options)
    mend()
    return str(error.value)


def message_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def uninterrupted(model: RecurrentMemoryModel, book: Path, folder: Path) -> bytes:
    folder.mkdir()
    path = folder / "whole.safetensors"
    MemoryReader(model, tiny_tokenizer()).read(book, out=path)
    return path.read_bytes()


# ---------------------------------------------------------------------- a reading that ends


def test_a_finished_reading_is_one_file(reader: MemoryReader, book: Path, out: Path) -> None:
    state = reader.read(book, out=out, metadata={"model": "tiny"})
    assert sorted(path.name for path in out.parent.iterdir()) == ["book.txt", "out.safetensors"]
    assert torch.equal(MemoryState.load(out, model=reader.model).memory, state.memory)
    metadata = MemoryState.read_metadata(out)
    assert metadata["model"] == "tiny"
    (text,) = texts_of(metadata)
    assert text.tokens == reader.stats.tokens == int(state.tokens_read)
    assert [file["name"] for file in text.sources["files"]] == ["book.txt"]


def test_equal_readings_are_equal_files(reader: MemoryReader, book: Path, out: Path, tmp_path: Path) -> None:
    other = MemoryReader(reader.model, tiny_tokenizer())
    whole = uninterrupted(reader.model, book, tmp_path / "other")
    reader.read(book, out=out)
    assert out.read_bytes() == whole
    other.read(book, out=out, force=True)
    assert out.read_bytes() == whole


def test_it_is_saved_on_the_way_as_often_as_was_asked(reader: MemoryReader, book: Path, out: Path) -> None:
    saved: list[int] = []
    original = MemoryState.save

    def save(state: MemoryState, path: Path, metadata: Any = None) -> None:
        saved.append(int(state.tokens_read) if Path(path) == partial_path(out) else -1)
        original(state, path, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryState, "save", save)
        reader.read(book, out=out)
        blocks = -(-reader.stats.tokens // BLOCK)
        assert saved == [*(BLOCK * n for n in range(1, blocks)), reader.stats.tokens, -1]
        saved.clear()
        reader.save_every_s = 3600
        reader.read(book, out=out, force=True)
        assert saved == [-1]


# ---------------------------------------------------------------------- a reading that is interrupted


@pytest.mark.parametrize("blocks", [1, 2, 7])
@pytest.mark.parametrize("other_size", [False, True])
def test_resumed_is_uninterrupted_byte_for_byte(
    reader: MemoryReader, book: Path, out: Path, tmp_path: Path, said: list[str], blocks: int, other_size: bool
) -> None:
    message = interrupted(reader, book, out, blocks)
    assert message == (
        f"interrupted after {blocks * BLOCK} tokens, which are kept in '{partial_path(out)}'; "
        "go on with the same command and --resume"
    )
    assert not out.exists()
    again = MemoryReader(
        tiny_model(), tiny_tokenizer(), tokens_per_block=BLOCK * (7 if other_size else 1), notify=said.append
    )
    state = again.read(book, out=out, resume=True)
    assert said == [f"Resuming after {blocks * BLOCK} tokens."]
    assert out.read_bytes() == uninterrupted(reader.model, book, tmp_path / "other")
    assert torch.equal(state.memory, MemoryState.load(out).memory)
    assert not partial_path(out).exists()
    assert (again.stats.resumed_at, again.stats.tokens) == (blocks * BLOCK, int(state.tokens_read))


def test_it_can_be_interrupted_again_and_again(reader: MemoryReader, book: Path, out: Path, tmp_path: Path) -> None:
    times = 0
    while True:
        mend = interrupt_after(reader.model, 2)
        try:
            reader.read(book, out=out, resume=True)
        except KeyboardInterrupt:
            times += 1
            continue
        finally:
            mend()
        break
    assert times > 3
    assert out.read_bytes() == uninterrupted(reader.model, book, tmp_path / "other")


def test_an_interruption_before_the_first_block_leaves_nothing(reader: MemoryReader, book: Path, out: Path) -> None:
    assert interrupted(reader, book, out, blocks=0) == ""
    assert not partial_path(out).exists()


def test_an_interruption_while_skipping_says_what_is_kept(
    reader: MemoryReader, book: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(reader, book, out)

    def skip(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "_skip", skip)
    with pytest.raises(KeyboardInterrupt) as error:
        reader.read(book, out=out, resume=True)
    assert message_of(error) == (
        f"interrupted; what was read before is kept in '{partial_path(out)}'; go on with the same command and --resume"
    )
    assert partial_path(out).exists()


def test_what_was_saved_last_is_enough(reader: MemoryReader, book: Path, out: Path, tmp_path: Path) -> None:
    """As after SIGKILL, when nobody saves in the end."""
    mend = interrupt_after(reader.model, 5, error=SystemError)
    with pytest.raises(SystemError):
        reader.read(book, out=out)
    mend()
    assert int(MemoryState.load(partial_path(out)).tokens_read) == 5 * BLOCK
    reader.read(book, out=out, resume=True)
    assert reader.stats.resumed_at == 5 * BLOCK
    assert out.read_bytes() == uninterrupted(reader.model, book, tmp_path / "other")


def test_a_pipe_is_resumed_when_the_same_text_comes_again(reader: MemoryReader, out: Path, said: list[str]) -> None:
    interrupted(reader, iter([TEXT]), out)
    state = reader.read(iter([TEXT[:50], TEXT[50:]]), out=out, resume=True)
    assert torch.equal(state.memory, reader.read(iter([TEXT])).memory)
    assert said == [f"Resuming after {3 * BLOCK} tokens."]


def test_nothing_to_resume(reader: MemoryReader, book: Path, out: Path, said: list[str]) -> None:
    reader.read(book, out=out, resume=True)
    assert said == [f"Nothing to resume: there is no {partial_path(out)}. Reading from the beginning."]
    assert out.exists()


def test_resuming_a_finished_reading(reader: MemoryReader, book: Path, out: Path, said: list[str]) -> None:
    state = reader.read(book, out=out)
    before = out.read_bytes()
    tokens, segments = reader.stats.tokens, reader.stats.segments
    again = reader.read(book, out=out, resume=True)
    assert said == [f"{out} is complete: all {tokens:,} tokens have been read; nothing to resume."]
    assert torch.equal(state.memory, again.memory)
    assert (reader.stats.tokens, reader.stats.segments, reader.stats.resumed_at) == (tokens, segments, tokens)
    assert out.read_bytes() == before


def test_killed_between_the_end_and_the_removal_of_the_partial_state(
    reader: MemoryReader, book: Path, out: Path
) -> None:
    interrupted(reader, book, out)
    partial = partial_path(out).read_bytes()
    reader.read(book, out=out, resume=True)
    partial_path(out).write_bytes(partial)
    reader.read(book, out=out, resume=True)
    assert not partial_path(out).exists()


def test_what_a_killed_process_left_is_removed(reader: MemoryReader, book: Path, out: Path) -> None:
    stale = [out.with_name(f".{out.name}.0a1b2c3d.tmp"), out.with_name(f".{out.name}.partial.0a1b2c3d.tmp")]
    other = out.with_name(f".{out.name}2.0a1b2c3d.tmp")
    for path in (*stale, other):
        path.write_bytes(b"half a state")
    reader.read(book, out=out)
    assert [path.exists() for path in (*stale, other)] == [False, False, True]


def test_resume_without_out(reader: MemoryReader, book: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^resume=True needs out=…, the file whose unfinished reading is to be gone on with$"
    ):
        reader.read(book, resume=True)


# ---------------------------------------------------------------------- a text that has changed


def changed_text(text: str, how: str) -> str:
    return {
        "longer": text + " More.",
        "same size": text.replace("garden", "gardem", 1),
        "shorter": text[:200],
        "empty line first": "\n" + text,
    }[how]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("longer", "has {new} bytes and had {old}"),
        ("same size", "has other contents of the same size"),
        ("shorter", "has {new}"),
    ],
)
def test_a_file_that_has_changed(reader: MemoryReader, book: Path, out: Path, how: str, reason: str) -> None:
    old = book.stat().st_size
    interrupted(reader, book, out)
    partial = partial_path(out).read_bytes()
    book.write_text(changed_text(TEXT, how), "utf-8")
    with pytest.raises(SourceChangedError) as error:
        reader.read(book, out=out, resume=True)
    assert message_of(error).startswith("the text has changed since the reading began: 'book.txt' ")
    assert reason.format(new=book.stat().st_size, old=old) in message_of(error)
    assert partial_path(out).read_bytes() == partial
    assert not out.exists()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("same size", "its tokens are others"),
        ("empty line first", "its tokens are others"),
        ("shorter", "it ends after {tokens} tokens"),
    ],
)
def test_a_pipe_that_has_changed(reader: MemoryReader, out: Path, how: str, reason: str) -> None:
    interrupted(reader, iter([TEXT]), out)
    other = changed_text(TEXT, how)
    tokens = len(tiny_tokenizer()(other)["input_ids"])
    with pytest.raises(SourceChangedError) as error:
        reader.read(iter([other]), out=out, resume=True)
    assert message_of(error) == (
        f"the text is not the one whose first {3 * BLOCK} tokens were read before the interruption: "
        f"{reason.format(tokens=tokens)} (did the text, its encoding or the tokenizer change?); "
        "give the same text, or start again with --force"
    )


def test_a_pipe_in_place_of_a_file(reader: MemoryReader, book: Path, out: Path) -> None:
    interrupted(reader, book, out)
    with pytest.raises(
        SourceChangedError, match="began with other files, or with a pipe; give the same ones, or start again"
    ):
        reader.read(iter([TEXT]), out=out, resume=True)


def test_another_model(reader: MemoryReader, book: Path, out: Path) -> None:
    interrupted(reader, book, out)
    with pytest.raises(StateModelMismatchError, match="was written by a model with fingerprint"):
        MemoryReader(tiny_model(seed=1), tiny_tokenizer()).read(book, out=out, resume=True)


def test_another_dtype(reader: MemoryReader, book: Path, out: Path) -> None:
    interrupted(reader, book, out)
    with pytest.raises(ConfigError) as error:
        MemoryReader(tiny_model().double(), tiny_tokenizer()).read(book, out=out, resume=True)
    assert message_of(error) == (
        f"{partial_path(out)}: was begun with dtype float32, this model has float64; "
        "go on with --dtype float32, or start again with --force"
    )


def test_other_threads_are_noted(
    reader: MemoryReader, book: Path, out: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    interrupted(reader, book, out)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    reader.read(book, out=out, resume=True)
    assert said[0] == (
        f"The last digits of the memory may differ from an uninterrupted reading: threads {threads} then, 99 now."
    )


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no reading", "pickle"])
def test_a_damaged_partial_state(reader: MemoryReader, book: Path, out: Path, damage: str) -> None:
    interrupted(reader, book, out)
    partial = partial_path(out)
    if damage == "truncated":
        partial.write_bytes(partial.read_bytes()[:-100])
    elif damage == "foreign":
        partial.write_bytes(b"Mary went to the garden")
    elif damage == "pickle":
        torch.save({"state": 1}, partial)
    else:
        MemoryState.load(partial).save(partial, {"reading": json.dumps({"tokens": 3})})
    with pytest.raises(StateFileError) as error:
        reader.read(book, out=out, resume=True)
    assert message_of(error).startswith(f"{partial}: ")
    reader.read(book, out=out, force=True)
    assert out.exists()


# ---------------------------------------------------------------------- nothing is overwritten


@pytest.mark.parametrize("resume", [False, True])
def test_an_existing_file_is_not_overwritten(reader: MemoryReader, book: Path, out: Path, resume: bool) -> None:
    reader.read(iter(["Another text."]), out=out)
    before = out.read_bytes()
    with pytest.raises(OutputError) as error:
        reader.read(book, out=out, resume=resume)
    assert message_of(error) == (
        f"Cannot write '{out}': it exists already. Choose another name, or overwrite it with --force (force=True)."
    )
    assert out.read_bytes() == before
    reader.read(book, out=out, force=True)
    assert out.read_bytes() != before


def test_an_interrupted_reading_is_not_given_up(reader: MemoryReader, book: Path, out: Path, tmp_path: Path) -> None:
    interrupted(reader, book, out)
    with pytest.raises(OutputError) as error:
        reader.read(book, out=out)
    assert message_of(error) == (
        f"Cannot write '{out}': '{partial_path(out)}' holds a reading of it that was interrupted. "
        "Go on with it with --resume (resume=True), or start again with --force (force=True)."
    )
    reader.read(book, out=out, force=True)
    assert reader.stats.resumed_at == 0
    assert not partial_path(out).exists()


def test_where_nothing_can_be_written_is_known_at_once(reader: MemoryReader, book: Path, tmp_path: Path) -> None:
    interrupt_after(reader.model, 0, error=AssertionError)
    with pytest.raises(OutputError, match="does not exist. Create it: mkdir -p"):
        reader.read(book, out=tmp_path / "no" / "out.safetensors")
    with pytest.raises(OutputError, match="it is a folder. Give the name of a file."):
        reader.read(book, out=tmp_path)


def test_a_bad_text_leaves_no_file(reader: MemoryReader, tmp_path: Path, out: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(TEXT.encode() * 20 + b"\xff" + TEXT.encode())
    with pytest.raises(InputError, match="is not utf-8 text"):
        reader.read(tmp_path / "bad.txt", out=out)
    assert not out.exists()


# ---------------------------------------------------------------------- a full disk


def test_a_disk_that_fills_up_on_the_way(
    reader: MemoryReader, book: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(reader, book, out)
    before = partial_path(out).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(recurrent_memory.files.os, "fsync", full)
        with pytest.raises(OutputError) as error:
            reader.read(book, out=out, resume=True)
    assert message_of(error) == (
        f"Cannot write '{partial_path(out)}': no space is left on the disk. Free some space, or choose a folder on another "
        "disk. Nothing that was there before has been changed. "
        f"What was read before is in '{partial_path(out)}': go on with --resume (resume=True)."
    )
    assert error.value.errno == errno.ENOSPC
    assert partial_path(out).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt", "out.safetensors.partial"]
    reader.read(book, out=out, resume=True)
    assert out.read_bytes() == uninterrupted(reader.model, book, tmp_path / "other")


def test_a_disk_that_is_full_in_the_end(
    reader: MemoryReader, book: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MemoryState.save

    def save(state: MemoryState, path: Path, metadata: Any = None) -> None:
        if Path(path) == out:
            raise OutputError(f"Cannot write '{path}': no space is left on the disk.")
        original(state, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryState, "save", save)
        with pytest.raises(OutputError, match="go on with --resume"):
            reader.read(book, out=out)
    reader.read(book, out=out, resume=True)
    assert reader.stats.resumed_at == reader.stats.tokens
    assert out.read_bytes() == uninterrupted(reader.model, book, tmp_path / "other")


def test_ctrl_c_when_the_disk_is_full(
    reader: MemoryReader, book: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.save_every_s = 3600

    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(MemoryState, "save", full)
    assert interrupted(reader, book, out) == "interrupted, and the reading could not be saved: the disk is full"


# ---------------------------------------------------------------------- several texts


def test_appending_is_reading_on(reader: MemoryReader, book: Path, out: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("John moved to the kitchen. " * 20, "utf-8")
    first = reader.read(book, out=out)
    both = tmp_path / "both.safetensors"
    state = reader.read(more, out=both, append_to=out)
    ids = torch.tensor([tiny_tokenizer()(more.read_text())["input_ids"]])
    assert torch.equal(state.memory, reader.model.read(ids, memory_state=first).memory)
    assert reader.stats.tokens == ids.shape[1]
    texts = texts_of(MemoryState.read_metadata(both))
    assert [text.sources["files"][0]["name"] for text in texts] == ["book.txt", "more.txt"]
    assert sum(text.tokens for text in texts) == int(state.tokens_read)
    reader.read(more, out=out, append_to=out)
    assert out.read_bytes() == both.read_bytes()


@pytest.mark.parametrize("in_place", [False, True])
def test_appending_can_be_interrupted(
    reader: MemoryReader, book: Path, out: Path, tmp_path: Path, said: list[str], in_place: bool
) -> None:
    reader.read(iter(["A first text. " * 9]), out=out)
    expected = tmp_path / "expected.safetensors"
    reader.read(book, out=expected, append_to=out)
    target = out if in_place else tmp_path / "both.safetensors"
    interrupted(reader, book, target, append_to=out)
    partial = partial_path(target).read_bytes()
    reader.read(book, out=target, append_to=out, resume=True)
    assert said == [f"Resuming after {3 * BLOCK} tokens."]
    assert target.read_bytes() == expected.read_bytes()

    partial_path(target).write_bytes(partial)  # as if killed before it was removed
    reader.read(book, out=target, append_to=out, resume=True)
    assert "is complete" in said[-1]
    assert target.read_bytes() == expected.read_bytes()
    assert not partial_path(target).exists()


def test_appending_the_same_text_twice(reader: MemoryReader, book: Path, out: Path) -> None:
    once = int(reader.read(book, out=out).tokens_read)
    assert int(reader.read(book, out=out, append_to=out).tokens_read) == 2 * once
    interrupted(reader, book, out, append_to=out)
    assert int(reader.read(book, out=out, append_to=out, resume=True).tokens_read) == 3 * once


def test_resuming_without_the_state_that_was_appended_to(
    reader: MemoryReader, book: Path, out: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    reader.read(iter(["A first text."]), out=base)
    interrupted(reader, book, out, append_to=base)
    with pytest.raises(
        SourceChangedError, match=r"by appending to a state with the hash [0-9a-f]{12}, which is not so now; give"
    ):
        reader.read(book, out=out, resume=True)
    reader.read(iter(["Another first text."]), out=base, force=True)
    with pytest.raises(SourceChangedError, match="by appending to a state with the hash"):
        reader.read(book, out=out, append_to=base, resume=True)


def test_appending_to_a_state_that_is_no_file(reader: MemoryReader, book: Path, out: Path) -> None:
    base, other = reader.read(iter(["A first text."])), reader.read(iter(["A f1rst text."]))
    expected = reader.read(book, append_to=base)
    interrupted(reader, book, out, append_to=base)
    with pytest.raises(SourceChangedError, match="by appending to a state with the hash"):
        reader.read(book, out=out, append_to=other, resume=True)
    state = reader.read(book, out=out, append_to=base, resume=True)
    assert torch.equal(state.memory, expected.memory)


def test_appending_to_a_partial_state(reader: MemoryReader, book: Path, out: Path, tmp_path: Path) -> None:
    interrupted(reader, book, out)
    with pytest.raises(StateFileError, match="is a reading that was interrupted; finish it first"):
        reader.read(book, out=tmp_path / "more.safetensors", append_to=partial_path(out))


def test_appending_to_another_models_state(reader: MemoryReader, book: Path, out: Path) -> None:
    MemoryReader(tiny_model(seed=1), tiny_tokenizer()).read(book, out=out)
    with pytest.raises(StateError, match="was written by a model with fingerprint"):
        reader.read(book, out=out, append_to=out)


# ---------------------------------------------------------------------- kill -9

# Imports once, then forks a process for each attempt: what is killed reads, and saves after every block.
KILLED = """
import os, random, signal, sys, time, warnings
import torch
torch.set_num_threads(1)
from recurrent_memory import MemoryReader, MemoryState
from recurrent_memory.models import load_model

folder, book, out, seed = sys.argv[1:]
rng = random.Random(int(seed))
partial = out + ".partial"
model, tokenizer = load_model(folder)
kills = last = 0
for attempt in range(7):
    child = os.fork()
    if not child:
        MemoryReader(model, tokenizer, save_every_s=0, tokens_per_block=1).read(book, out=out, resume=True)
        os._exit(0)
    deadline = rng.uniform(0.02, 0.3) if attempt < 6 else 1e9
    started = time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - started < deadline:
        time.sleep(0.001)
    if ended[0]:
        assert ended[1] == 0, ended
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    if os.path.exists(partial):
        tokens = int(MemoryState.load(partial, model=model).tokens_read)
        assert tokens >= last, (tokens, last)
        last = tokens
print(kills, last)
"""


def test_kill_9_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    book, out = tmp_path / "book.txt", tmp_path / "out.safetensors"
    book.write_text(prose(1500), "utf-8")
    seed = random.randrange(10**6)
    script = [sys.executable, "-c", KILLED, str(folder), str(book), str(out), str(seed)]
    result = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"seed {seed}: {result.stderr}"
    kills, last = map(int, result.stdout.split())
    assert kills >= 2
    assert last > 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".partial"))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert out.read_bytes() == uninterrupted(tiny_model(), book, tmp_path / "other")
    finally:
        torch.set_num_threads(threads)


def test_ctrl_c_in_a_process_of_its_own_that_waits_for_standard_input(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    out = tmp_path / "out.safetensors"
    code = "import sys; from recurrent_memory.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "read", "-", "--model", str(folder), "--out", str(out), "--save-every", "0"]
    command += ["--threads", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write((prose(9000) + "\n").encode())  # several blocks of the tokenizer
    process.stdin.flush()
    for _ in range(30_000):
        if partial_path(out).exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        status = process.wait(300)
    finally:
        process.kill()
    assert process.stdout is not None
    assert process.stderr is not None
    error = process.stderr.read().decode()
    assert process.stdout.read() == b""
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert status == 2, error
    assert len(error.splitlines()) == 1, error
    assert error.startswith("rmt: interrupted after ")
    assert error.endswith("go on with the same command and --resume\n")
    assert int(MemoryState.load(partial_path(out)).tokens_read) > 0
