"""`rmt read`: what it prints, what it refuses, and that nothing is lost."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory import MemoryState, RecurrentMemoryModel
from recurrent_memory.inference import sources
from tiny_models import prose, save_tiny_model, tiny_backbone, tiny_model, tiny_tokenizer


def test_what_it_prints(rmt: Any, folder: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "book.safetensors"
    printed = rmt("read", book, "--model", folder, "--out", out)
    tokens = len(tiny_tokenizer()(book.read_text("utf-8"))["input_ids"])
    assert printed.status == 0
    assert printed.err == ""
    assert printed.out.startswith(f"Read {tokens:,} tokens ({-(-tokens // 16)} segments) in ")
    assert printed.out.endswith(f'Ask it: rmt ask {out} "…"\n')
    state = MemoryState.load(out, model=tiny_model())
    assert torch.equal(
        state.memory, tiny_model().read(tiny_tokenizer()(book.read_text("utf-8"), return_tensors="pt").input_ids).memory
    )
    assert MemoryState.read_metadata(out)["model"] == str(folder)


def test_json(rmt: Any, folder: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "book.safetensors"
    values = rmt(
        "read", book, "--model", folder, "--out", out, "--json", "--threads", torch.get_num_threads(), "--seed", 1
    ).json
    state = MemoryState.load(out)
    assert values["tokens"] == int(state.tokens_read)
    assert values["segments"] == -(-values["tokens"] // 16)
    assert values["state_bytes"] == state.num_bytes
    assert values["tokens_per_s"] > 0
    assert values["peak_rss_mb"] > 50
    assert values["seconds"] > 0
    assert (values["state"], values["model"]) == (str(out), str(folder))


def test_how_it_computes_is_an_option(rmt: Any, folder: Path, book: Path, tmp_path: Path) -> None:
    states = []
    for fast in ("auto", "off"):
        out = tmp_path / fast
        assert rmt("read", book, "--model", folder, "--out", out, "--fast", fast, "--schedule", "auto").status == 0
        states.append(MemoryState.load(out).memory)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
    refused = rmt("read", book, "--model", folder, "--out", tmp_path / "no", "--fast", "very")
    assert (refused.status, refused.err) == (
        2,
        "rmt: fast='very' is not a way to compute; choose one of auto, off, compile, graph\n",
    )
    refused = rmt("read", book, "--model", folder, "--out", tmp_path / "no", "--schedule", "diagonal")
    assert refused.status == 2
    assert "kind='tokens'" in refused.err
    assert not (tmp_path / "no").exists()


def test_many_sources_are_one_text(rmt: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("John moved to the kitchen.\n", "utf-8")
    (tmp_path / "texts" / "a.txt.gz").write_bytes(gzip.compress(b"Mary went to the garden.\n"))
    (tmp_path / "c.txt").write_bytes("Zoë is in the café.\n".encode("latin-1"))
    whole = "Mary went to the garden.\nJohn moved to the kitchen.\nZoë is in the café.\n"
    reads = [
        rmt("read", tmp_path / "texts", "--model", folder, "--out", tmp_path / "two"),
        rmt(
            "read",
            tmp_path / "c.txt",
            "--encoding",
            "latin-1",
            "--append-to",
            tmp_path / "two",
            "--out",
            tmp_path / "three",
        ),
        rmt("read", "--model", folder, "--out", tmp_path / "piped", stdin=whole),
        rmt("read", "-", "--model", folder, "--out", tmp_path / "dash", stdin=whole),
    ]
    assert [read.status for read in reads] == [0] * 4, reads
    states = [MemoryState.load(tmp_path / name) for name in ("three", "piped", "dash")]
    assert torch.equal(states[1].memory, states[2].memory)
    # The boundary between appended texts is one between tokens; here, after a newline, it is one anyway.
    assert torch.equal(states[0].memory, states[1].memory)
    assert [int(state.tokens_read) for state in states] == [len(tiny_tokenizer()(whole)["input_ids"])] * 3


def test_appending_in_place_takes_the_states_model(rmt: Any, state: Path, book: Path) -> None:
    before = int(MemoryState.load(state).tokens_read)
    assert rmt("read", book, "--append-to", state).status == 0
    assert int(MemoryState.load(state).tokens_read) == 2 * before


def test_the_shipped_model_is_the_default(
    rmt: Any, folder: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import recurrent_memory.models

    monkeypatch.setattr(recurrent_memory.models, "shipped_model_path", lambda: folder)
    out = tmp_path / "book.safetensors"
    assert rmt("read", book, "--out", out, "--json").json["model"] == "shipped"
    assert MemoryState.read_metadata(out)["model"] == "shipped"
    assert rmt("ask", out, "Where is Mary?").status == 0


# ---------------------------------------------------------------------- nothing is lost


def test_an_existing_state_is_kept_without_force(rmt: Any, folder: Path, state: Path, book: Path) -> None:
    before = state.read_bytes()
    line = rmt("read", book, "--model", folder, "--out", state).error
    assert (
        line
        == f"Cannot write '{state}': it exists already. Choose another name, or overwrite it with --force (force=True)."
    )
    assert state.read_bytes() == before
    assert rmt("read", book, "--model", folder, "--out", state, "--force").status == 0


def test_ctrl_c_and_resume(rmt: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "out.safetensors"
    book.write_text(prose(1000), "utf-8")
    original = RecurrentMemoryModel.read
    calls = [0]

    def interrupted(model: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # which `rmt read` takes as Ctrl-C
        return original(model, *arguments, **options)

    command = ["read", book, "--model", folder, "--out", out]
    monkeypatch.setattr(RecurrentMemoryModel, "read", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    line = rmt(*command).error
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (
        line
        == f"interrupted after 4,096 tokens, which are kept in '{out}.partial'; go on with the same command and --resume"
    )
    assert not out.exists()
    assert "holds a reading of it that was interrupted" in rmt(*command).error
    printed = rmt(*command, "--resume")
    assert printed.err == "Resuming after 4,096 tokens.\n"
    assert printed.status == 0
    whole = tmp_path / "whole.safetensors"
    assert rmt("read", book, "--model", folder, "--out", whole).status == 0
    assert whole.read_bytes() == out.read_bytes()
    printed = rmt(*command, "--resume", "--json")
    assert "is complete" in printed.err
    assert printed.json["tokens"] == int(MemoryState.load(out).tokens_read)


def test_a_text_that_changed_meanwhile(rmt: Any, folder: Path, state: Path, book: Path) -> None:
    """The finished state of another version of the text is not taken for this one's."""
    book.write_text("Another text.", "utf-8")
    assert "it exists already" in rmt("read", book, "--model", folder, "--out", state, "--resume").error


def test_a_disk_that_is_really_full(folder: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = 'mount -t tmpfs -o size=12k tmpfs "$1"'
    small = tmp_path / "small"
    small.mkdir()
    if not unshare or subprocess.run([unshare, "-rm", "sh", "-c", mount, "sh", small], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    book = tmp_path / "book.txt"
    book.write_text(prose(40), "utf-8")
    code = "import sys; from recurrent_memory.cli import main; sys.exit(main(sys.argv[1:]))"
    fill = '{ head -c 100k /dev/zero > "$1/old" || true; } 2>/dev/null'
    show = 'ls -A "$1" >&2'
    script = f'{mount} && {fill} && "$2" -c "$3" read "$4" --model "$5" --out "$1/out.st" --threads 1; echo status $? >&2; {show}'
    command = [unshare, "-rm", "sh", "-c", script, "sh", small, sys.executable, code, book, folder]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr.splitlines() == [
        f"rmt: Cannot write '{small}/out.st': no space is left on the disk. Free some space, or choose a folder on another "
        "disk. Nothing that was there before has been changed.",
        "status 2",
        "old",
    ]


# ---------------------------------------------------------------------- texts that cannot be read


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / "bad.txt"
    contents = {
        "empty": b"",
        "binary": bytes(range(256)) * 10,
        "sparse": b"",
        "latin-1": "Zoë is in the café.".encode("latin-1"),
        "utf-16": "Mary".encode("utf-16"),
        "late": prose(3000).encode() + b"\xff",
        "broken gz": gzip.compress(prose(100).encode())[:-20],
        "no gz": b"Mary",
    }
    if kind == "missing":
        return folder / "missing.txt"
    if kind in ("folder", "empty folder"):
        path = folder / "texts"
        path.mkdir()
        if kind == "folder":
            (path / "a.bin").write_bytes(bytes(range(256)))
        return path
    if "gz" in kind:
        path = folder / "bad.txt.gz"
    path.write_bytes(contents[kind])
    if kind == "sparse":
        os.truncate(path, 1 << 40)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty: there is no text to read"),
        ("binary", "is binary, not text"),
        ("sparse", "is binary, not text"),
        ("latin-1", "is not utf-8 text: byte 2 (0xeb)"),
        ("utf-16", "is "),
        ("late", "is not utf-8 text: byte "),
        ("broken gz", "is not a whole gzip file"),
        ("no gz", "is not a whole gzip file"),
        ("folder", "holds no readable text: 1 files in it are all empty or binary"),
        ("empty folder", "holds no readable text: 0 files in it"),
    ],
)
def test_bad_texts_are_one_line_and_leave_nothing(
    rmt: Any, folder: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    bad = write_bad(tmp_path, kind)
    line = rmt("read", bad, "--model", folder, "--out", tmp_path / "out").error
    assert line.startswith(f"'{bad}' {reason}")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_nothing_on_standard_input(rmt: Any, folder: Path, tmp_path: Path) -> None:
    assert rmt("read", "-", "--model", folder, "--out", tmp_path / "out").error.startswith("standard input is empty")


def test_an_unknown_encoding(rmt: Any, folder: Path, book: Path, tmp_path: Path) -> None:
    line = rmt("read", book, "--encoding", "utf-9", "--model", folder, "--out", tmp_path / "out").error
    assert line.startswith("encoding='utf-9' is not a known text encoding")


def test_a_folder_without_permission(rmt: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("Mary", "utf-8")
    texts.chmod(0)
    try:
        if os.access(texts, os.R_OK):  # as root: permissions are not asked

            def denied(*_: Any, **__: Any) -> Any:
                raise PermissionError(13, "Permission denied", str(texts))

            monkeypatch.setattr(sources.os, "walk", denied)
        line = rmt("read", texts, "--model", folder, "--out", tmp_path / "out").error
    finally:
        texts.chmod(0o755)
    assert line == f"'{texts}' cannot be read: permission denied; change its permissions, or give other files"


def test_one_line_of_a_great_length(rmt: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held in parts only: the model is replaced by a count, so that the text can be long."""
    book = tmp_path / "line.txt"
    book.write_text("Mary went to the garden and " * 15_000, "utf-8")
    widest = [0]

    def counting(model: Any, ids: Any, memory_state: Any, **_: Any) -> Any:
        widest[0] = max(widest[0], ids.shape[1])
        return memory_state.advanced(torch.tensor([ids.shape[1]]))

    monkeypatch.setattr(RecurrentMemoryModel, "read", counting)
    values = rmt("read", book, "--model", folder, "--out", tmp_path / "out", "--json").json
    assert values["tokens"] == len(tiny_tokenizer()(book.read_text())["input_ids"])
    assert widest[0] <= 4096


# ---------------------------------------------------------------------- models and outputs


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A model folder that may be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def set_memory(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["memory"] |= settings
    (folder / "config.json").write_text(json.dumps(config))


def break_model(copied: Path, how: str) -> None:
    if how == "no memory":
        shutil.rmtree(copied)
        tiny_backbone().save_pretrained(copied)
    elif how == "no config":
        (copied / "config.json").unlink()
    elif how == "no weights":
        (copied / "model.safetensors").unlink()
    elif how == "truncated weights":
        weights = copied / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (copied / name).unlink()
    elif how == "long segments":
        set_memory(copied, segment_length=1000)
    elif how == "negative size":
        set_memory(copied, num_memory_tokens=-1)
    elif how == "NaN":
        model = tiny_model()
        with torch.no_grad():
            model.backbone.transformer.h[0].mlp.c_fc.bias[0] = float("nan")
        model.save_pretrained(copied)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no memory", "is a gpt2 model without a memory; give it one with RecurrentMemoryModel.from_backbone"),
        ("no config", "has no config.json, so it is not a model folder"),
        ("no weights", "the weights cannot be loaded"),
        ("truncated weights", "the weights cannot be loaded"),
        ("no tokenizer", "there is no tokenizer beside the model"),
        (
            "long segments",
            "segment_length=1000 with num_memory_tokens=2 makes rows of 1004 positions, but the backbone reads at most 64",
        ),
        ("negative size", "num_memory_tokens=-1 must be at least 0"),
        ("NaN", "hold NaN or infinity"),
    ],
)
def test_models_that_cannot_be_used(rmt: Any, copied: Path, book: Path, tmp_path: Path, how: str, reason: str) -> None:
    break_model(copied, how)
    line = rmt("read", book, "--model", copied, "--out", tmp_path / "out").error
    assert reason in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "~/no/such/model"])
def test_a_model_that_is_not_there(rmt: Any, book: Path, tmp_path: Path, name: str) -> None:
    line = rmt("read", book, "--model", name, "--out", tmp_path / "out").error
    assert line == f"{name!r}: there is no such model folder; give the folder that holds config.json"


def test_an_installation_without_a_model(rmt: Any, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recurrent_memory.models

    monkeypatch.setattr(recurrent_memory.models, "shipped_model_path", lambda: tmp_path / "none")
    line = rmt("read", book, "--out", tmp_path / "out").error
    assert line.startswith("this installation comes without a model; name one with --model FOLDER")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--device", "abacus"], "--device abacus: is not available here ("),
        (["--device", "cuda:99"], "--device cuda:99: is not available here ("),
        (["--device", "meta"], "--device meta: holds no numbers; use --device auto or cpu"),
        (["--dtype", "int4"], "--dtype int4: is not one of auto, float32, bfloat16, float16, float64"),
        (["--save-every", "-1"], "save_every_s=-1.0 must be a number of seconds of at least 0"),
        (["--out", "{tmp}/no/out"], "Cannot write '{tmp}/no/out': the folder '{tmp}/no' does not exist. Create it: "),
        (["--out", "{tmp}"], "Cannot write '{tmp}': it is a folder. Give the name of a file."),
        (["--append-to", "{tmp}/missing"], "{tmp}/missing: no such file; write a state with `rmt read"),
    ],
)
def test_impossible_options(rmt: Any, folder: Path, book: Path, tmp_path: Path, options: list[str], line: str) -> None:
    options = [option.format(tmp=tmp_path) for option in options]
    printed = rmt("read", book, "--model", folder, "--out", tmp_path / "out", *options)
    assert printed.error.startswith(line.format(tmp=tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_every_dtype(rmt: Any, folder: Path, book: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out"
    assert rmt("read", book, "--model", folder, "--out", out, "--dtype", dtype).status == 0
    state = MemoryState.load(out)
    assert state.memory.dtype == getattr(torch, dtype)
    assert state.fingerprint == tiny_model().fingerprint


def test_appending_to_another_models_state(rmt: Any, state: Path, other_folder: Path, book: Path) -> None:
    before = state.read_bytes()
    line = rmt("read", book, "--append-to", state, "--model", other_folder).error
    assert "was written by a model with fingerprint" in line
    assert state.read_bytes() == before


def test_a_model_folder_with_a_space_in_its_name(rmt: Any, book: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "my model")
    assert rmt("read", book, "--model", folder, "--out", tmp_path / "out").status == 0
    assert rmt("ask", tmp_path / "out", "Where?").status == 0
