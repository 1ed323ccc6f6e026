"""A state is a value: split, joined, moved, saved whole or not at all, and never loaded from what is not one."""

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recurrent_memory import MemoryConfig, MemoryState, OutputError, StateError, StateFileError, StateModelMismatchError

CONFIG = MemoryConfig(num_memory_tokens=2, segment_length=4)


def make(lengths: tuple[int, ...] = (3, 0, 4), fingerprint: str = "f" * 32) -> MemoryState:
    batch, width = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(batch)
    pending_lengths = torch.tensor(lengths)
    return MemoryState(
        tensors={"memory": torch.randn(batch, 2, 5, generator=generator)},
        tokens_read=pending_lengths + 8,
        segments_folded=torch.full((batch,), 2),
        pending=torch.arange(1, batch * width + 1).view(batch, width),
        pending_lengths=pending_lengths,
        memory_config=CONFIG,
        fingerprint_source=fingerprint,
    ).trimmed()


def same(left: MemoryState, right: MemoryState) -> bool:
    names = ("memory", "tokens_read", "segments_folded", "pending", "pending_lengths")
    return left.memory_config == right.memory_config and all(
        torch.equal(getattr(left, n), getattr(right, n)) for n in names
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make().save(tmp_path / "book.safetensors", metadata={"source": "book.txt"})
    return tmp_path / "book.safetensors"


def refused(path: Path) -> str:
    """The message with which loading fails."""
    with pytest.raises(StateFileError) as error:
        MemoryState.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- a value


def test_rows_can_be_taken_in_any_order() -> None:
    state = make()
    assert len(state) == state.batch_size == 3
    for rows in (1, [2, 0], slice(1, None), torch.tensor([0, 0, 2]), torch.tensor([True, False, True]), -1, []):
        part = state[rows]
        index = torch.arange(3)[
            [rows] if isinstance(rows, int) else torch.tensor(rows, dtype=torch.long) if rows == [] else rows
        ]
        assert torch.equal(part.memory, state.memory[index])
        assert torch.equal(part.tokens_read, state.tokens_read[index])
        assert part.pending.shape[1] == max(part.pending_lengths.tolist(), default=0)
    assert state[1].pending.shape == (1, 0)
    for rows in (3, [0, 5], -4):
        with pytest.raises(StateError, match="are out of range of a state of 3 texts"):
            state[rows]


def test_states_are_put_together() -> None:
    state = make()
    assert same(MemoryState.cat([state[0], state[1:]]), state)
    with pytest.raises(StateError, match="no states to put together; give at least one"):
        MemoryState.cat([])
    with pytest.raises(StateModelMismatchError, match="states of different models cannot be one batch"):
        MemoryState.cat([state, make(fingerprint="0" * 32)])
    with pytest.raises(StateError, match="states with different memory settings cannot be one batch"):
        MemoryState.cat([state, replace(state, memory_config=MemoryConfig(2, 5))])


def test_rows_are_chosen_from_two_states() -> None:
    state, other = make((3, 0, 4)), make((1, 2, 1))
    mixed = state.where(torch.tensor([True, False, True]), other)
    for row, source in enumerate((state, other, state)):
        assert same(mixed[row], source[row])


def test_it_is_moved_detached_and_cloned() -> None:
    state = make()
    grown = replace(state, tensors={"memory": state.memory.clone().requires_grad_()})
    assert not grown.detach().memory.requires_grad
    half = state.to(dtype=torch.bfloat16)
    assert half.memory.dtype == torch.bfloat16
    assert half.pending.dtype == torch.long
    assert same(state.to("cpu"), state)
    assert state.clone().memory.data_ptr() != state.memory.data_ptr()
    with pytest.raises(StateError, match="dtype=torch.int64 is not a floating-point dtype"):
        state.to(dtype=torch.int64)
    assert state.device == torch.device("cpu")
    assert state.num_bytes == 3 * 2 * 5 * 4 + 8 * (3 * 3 + 3 * 4)


def test_it_has_no_memory_tokens_of_another_kind() -> None:
    state = replace(make(), tensors={"A": torch.zeros(3, 2)})
    with pytest.raises(StateError, match=r"a memory of kind 'tokens' keeps \['A'\], not memory tokens; use .tensors"):
        _ = state.memory


# ---------------------------------------------------------------------- a file


def test_it_comes_back_as_it_was(path: Path) -> None:
    state = MemoryState.load(path)
    assert same(state, make())
    assert state.fingerprint == "f" * 32
    assert MemoryState.read_metadata(path)["source"] == "book.txt"
    assert MemoryState.load(path, device="cpu").device == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    state = make().to(dtype=dtype)
    state.save(tmp_path / "state")
    assert same(MemoryState.load(tmp_path / "state"), state)
    assert MemoryState.load(tmp_path / "state").memory.dtype == dtype


@pytest.mark.parametrize("config", [MemoryConfig(0, 4), MemoryConfig(2, 4)])
def test_states_with_nothing_in_them_are_files_too(config: MemoryConfig, tmp_path: Path) -> None:
    state = replace(make((0,)), memory_config=config, tensors={"memory": torch.zeros(1, config.num_memory_tokens, 5)})
    state.save(tmp_path / "state")
    assert same(MemoryState.load(tmp_path / "state"), state)


def test_equal_states_are_equal_files(path: Path, tmp_path: Path) -> None:
    for attempt in range(5):  # safetensors would write the metadata in random order
        wide = replace(make(), pending=torch.nn.functional.pad(make().pending, (0, 3), value=9))
        wide.trimmed().save(tmp_path / str(attempt), metadata={"source": "book.txt"})
        assert (tmp_path / str(attempt)).read_bytes() == path.read_bytes()


def test_its_own_metadata_cannot_be_overwritten(tmp_path: Path) -> None:
    make().save(tmp_path / "state", metadata={"format": "other", "fingerprint": "0", "sha256": "1"})
    assert MemoryState.load(tmp_path / "state").fingerprint == "f" * 32


def test_a_header_as_long_as_a_magic_number_is_no_pickle(tmp_path: Path) -> None:
    """A safetensors file begins with its header's length: 0x280 is `80 02`, as a pickle begins."""
    beginnings = set()
    for size in range(0, 256, 8):
        make().save(tmp_path / "state", metadata={"padding": "x" * size})
        beginnings.add((tmp_path / "state").read_bytes()[:1])
        assert same(MemoryState.load(tmp_path / "state"), make())
    assert b"\x80" in beginnings


# ---------------------------------------------------------------------- what is not a state


def test_a_file_cut_off_anywhere(path: Path) -> None:
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for size in {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, (header + len(data)) // 2, len(data) - 1}:
        path.write_bytes(data[:size])
        assert "damaged or not a safetensors file" in refused(path)
        assert "read the text again" in refused(path)


def test_a_file_with_a_byte_changed_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for position in {0, 7, 8, *range(9, len(data), 37), len(data) - 1}:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        refused(path)
    path.write_bytes(data + b"\0")
    assert "damaged or not a safetensors file" in refused(path)


def test_a_value_that_was_changed(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "damaged, its bytes are not those that were written; read the text again" in refused(path)


def _pickled() -> bytes:
    return pickle.dumps({"memory": [1.0]})


def _torch_saved() -> bytes:
    stream = io.BytesIO()
    torch.save({"memory": torch.zeros(2)}, stream)
    return stream.getvalue()


def _zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("memory", b"0")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        _pickled,
        _torch_saved,
        _zipped,
        lambda: gzip.compress(b"memory"),
        lambda: pickle.dumps([1], protocol=5),
        lambda: pickle.dumps([1], protocol=2),
    ],
    ids=["pickle", "torch", "zip", "gzip", "pickle5", "pickle2"],
)
def test_a_pickle_or_an_archive_is_not_opened(content: Callable[[], bytes], path: Path) -> None:
    path.write_bytes(content())
    assert "is a pickle or an archive, and is not opened; states are safetensors files" in refused(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"The quick brown fox jumps over the lazy dog", bytes(100), b"\xff" * 100]
)
def test_what_is_not_safetensors(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert "damaged or not a safetensors file" in refused(path)


def test_a_safetensors_file_of_something_else(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)
    assert "is a safetensors file, but not a memory state; was it written by `rmt read`?" in refused(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    assert "but not a memory state" in refused(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "recurrent-memory-state", "format_version": "99"})
    assert "state format '99', this version reads '1'; upgrade recurrent-memory" in refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: replace(s, tensors={"memory": torch.full((3, 2, 5), float("nan"))}),
            "the memory 'memory' holds NaN or infinity",
        ),
        (
            lambda s: replace(s, tensors={"memory": torch.full((3, 2, 5), float("inf"))}),
            "the memory 'memory' holds NaN or infinity",
        ),
        (lambda s: replace(s, tensors={"memory": torch.zeros(2, 2, 5)}), r"the shapes of \['memory'\] do not agree"),
        (
            lambda s: replace(s, segments_folded=torch.zeros(1, dtype=torch.long)),
            r"the shapes of \['segments_folded'\] do not agree",
        ),
        (lambda s: replace(s, tensors={}), r"do not agree; the file is damaged, read the text again"),
        (lambda s: replace(s, pending=s.pending[:, :2]), "pending_lengths does not fit the pending tokens"),
        (
            lambda s: replace(s, pending_lengths=-s.pending_lengths),
            "pending_lengths must be whole numbers, none below 0",
        ),
        (lambda s: replace(s, tokens_read=s.tokens_read.float()), "tokens_read must be whole numbers, none below 0"),
        (lambda s: replace(s, pending=-s.pending), "pending must be whole numbers, none below 0"),
    ],
)
def test_a_state_that_makes_no_sense(change: Callable[[MemoryState], MemoryState], message: str, path: Path) -> None:
    change(make()).save(path)
    with pytest.raises(StateFileError, match=message):
        MemoryState.load(path)


@pytest.mark.parametrize("missing", ["fingerprint", "memory_config", "pending", "tokens_read"])
def test_a_state_that_lacks_something(missing: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recurrent_memory import state as module

    header, tensors = MemoryState.read_metadata(path), load_file(path)
    header.pop(missing, None)
    tensors.pop(missing, None)
    save_file(tensors, path, metadata=header | {"sha256": module._hash(tensors, header)})
    message = refused(path)
    assert "not a whole memory state" in message
    assert missing in message
    assert "write it again with `rmt read`" in message


def test_settings_that_are_none(path: Path) -> None:
    from recurrent_memory import state as module

    header, tensors = MemoryState.read_metadata(path), load_file(path)
    for settings in ("{", "[]", '{"segment_length": -1}', '{"elephants": 1}'):
        header["memory_config"] = settings
        save_file(tensors, path, metadata=header | {"sha256": module._hash(tensors, header)})
        assert "not a whole memory state" in refused(path)


# ---------------------------------------------------------------------- places


def test_places_without_a_state(tmp_path: Path) -> None:
    assert "no such file; write a state with `rmt read TEXT --out nothing`" in refused(tmp_path / "nothing")
    assert "is a folder, not a state file; a state is one .safetensors file" in refused(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "cannot be read (Not a directory); check the permissions" in refused(tmp_path / "file" / "state")


def test_a_file_without_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody who is not root finds it; root may read everything."""

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbid)
    monkeypatch.setattr(Path, "stat", forbid)
    assert "cannot be read (Permission denied); check the permissions" in refused(path)


def test_a_state_is_written_whole_or_not_at_all(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is not a folder|does not exist|no such folder"):
        make().save(tmp_path / "nowhere" / "state")
    with pytest.raises(OutputError, match="it is a folder"):
        make().save(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="no space is left on the disk"):
        make((1, 1, 1)).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_counters_that_are_one_tensor_in_memory(tmp_path: Path) -> None:
    """As in a model's initial state."""
    zeros = torch.zeros(2, dtype=torch.long)
    memory = torch.ones(1, 2, 5).expand(2, -1, -1)
    state = MemoryState({"memory": memory}, zeros, zeros, torch.zeros(2, 0, dtype=torch.long), zeros, CONFIG, "f" * 32)
    state.save(tmp_path / "state")
    assert same(MemoryState.load(tmp_path / "state"), state)
