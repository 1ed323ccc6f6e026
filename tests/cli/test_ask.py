"""`rmt ask`: the answer, its probability, and states that cannot be asked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory import MemoryState
from recurrent_memory.inference.asking import ask
from tiny_models import tiny_model, tiny_tokenizer


def expected(state: Path, question: str = "Where is Mary?") -> Any:
    model = tiny_model()
    return ask(model, tiny_tokenizer(), MemoryState.load(state, model=model), [question])[0]


def test_the_answer(rmt: Any, state: Path) -> None:
    before = state.read_bytes()
    answer = expected(state)
    assert rmt("ask", state, "Where is Mary?").out == f"{answer.text or '(nothing)'}  ({answer.probability:.1%})\n"
    values = rmt("ask", state, "Where is Mary?", "--json").json
    assert (values["question"], values["answer"]) == ("Where is Mary?", answer.text)
    assert values["probability"] == pytest.approx(answer.probability, rel=1e-4)
    assert state.read_bytes() == before


def test_a_question_from_standard_input(rmt: Any, state: Path) -> None:
    values = rmt("ask", state, "-", "--json", stdin="Where is Zoë?\n").json
    assert (values["question"], values["answer"]) == ("Where is Zoë?", expected(state, "Where is Zoë?").text)


def test_a_question_that_looks_like_an_option(rmt: Any, state: Path) -> None:
    assert rmt("ask", state, "--json", "--", "--where?").json["question"] == "--where?"


def test_the_model_may_have_moved(rmt: Any, state: Path, folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    model = tiny_model()
    loaded = MemoryState.load(state, model=model)
    gone = tmp_path / "gone.safetensors"
    loaded.save(gone, {"model": str(tmp_path / "away")})
    line = rmt("ask", gone, "Where?").error
    assert (
        line
        == f"{gone}: its model was in '{tmp_path / 'away'}', which is no longer there; say where it is: --model FOLDER"
    )
    assert rmt("ask", gone, "Where?", "--model", moved).status == 0


def test_another_model(rmt: Any, state: Path, other_folder: Path) -> None:
    line = rmt("ask", state, "Where?", "--model", other_folder).error
    assert line.startswith(
        f"{state}: was written by a model with fingerprint {tiny_model().fingerprint}, this one has "
    )


def spoil(state: Path, how: str) -> Path:
    path = state.with_name("spoilt")
    if how == "missing":
        return path
    if how == "folder":
        path.mkdir()
    elif how == "truncated":
        path.write_bytes(state.read_bytes()[:-50])
    elif how == "cut in the header":
        path.write_bytes(state.read_bytes()[:40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("Mary went to the garden. " * 20)
    elif how == "pickle":
        torch.save({"memory": torch.zeros(1)}, path)
    elif how == "old pickle":
        torch.save({"memory": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    elif how == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, path)
    elif how == "NaN":
        loaded = MemoryState.load(state)
        loaded.tensors["memory"].fill_(float("nan"))
        loaded.save(path)
    elif how == "of tomorrow":
        data = state.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header["__metadata__"]["format_version"] = "9"
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "no such file; write a state with `rmt read"),
        ("folder", "is a folder, not a state file"),
        ("truncated", "damaged or not a safetensors file"),
        ("cut in the header", "damaged or not a safetensors file"),
        ("empty", "damaged or not a safetensors file"),
        ("text", "damaged or not a safetensors file"),
        ("pickle", "is a pickle or an archive, and is not opened"),
        ("old pickle", "is a pickle or an archive, and is not opened"),
        ("foreign", "is a safetensors file, but not a memory state"),
        ("NaN", "the memory 'memory' holds NaN or infinity"),
        ("of tomorrow", "state format '9', this version reads '1'; upgrade recurrent-memory"),
    ],
)
def test_states_that_cannot_be_asked(rmt: Any, state: Path, folder: Path, how: str, reason: str) -> None:
    path = spoil(state, how)
    assert rmt("ask", path, "Where?", "--model", folder).error.startswith(f"{path}: {reason}")
    assert rmt("info", path if path.is_file() or not path.exists() else state.with_name("none")).status == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["Where is Mary? " * 20], "the question has "),
        ([""], "the question is empty; ask something"),
        (["-"], "the question is empty; ask something"),
        (["Where?", "--max-new-tokens", "0"], "max_new_tokens=0 must be an int of at least 1"),
        (["Where?", "--max-new-tokens", "-3"], "max_new_tokens=-3 must be an int of at least 1"),
    ],
)
def test_questions_that_cannot_be_asked(rmt: Any, state: Path, arguments: list[str], line: str) -> None:
    assert rmt("ask", state, *arguments).error.startswith(line)
