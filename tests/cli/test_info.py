"""`rmt info`: what a path is, in words and as JSON."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory import MemoryConfig, MemoryState, RecurrentMemoryModel
from tiny_models import prose, tiny_backbone, tiny_model, tiny_tokenizer


def test_a_model_folder(rmt: Any, folder: Path) -> None:
    parameters = sum(p.numel() for p in tiny_model().parameters())
    size = (folder / "model.safetensors").stat().st_size
    assert rmt("info", folder).out == (
        f"{folder}: a recurrent-memory model: GPT2LMHeadModel, {parameters:,} weights in F32, {size:,} bytes.\n"
        "It reads segments of 16 tokens, and remembers 2 memory tokens of the kind 'tokens'.\n"
        "Vocabulary: 320 tokens. A tokenizer lies beside it.\n"
        f"Fingerprint: {tiny_model().fingerprint}\n"
    )
    values = rmt("info", folder, "--json").json
    assert values["kind"] == "model"
    assert values["parameters"] == parameters
    assert values["memory"] == tiny_model().memory_config.to_dict()
    assert values["fingerprint"] == tiny_model().fingerprint


def test_a_model_that_was_saved_without_its_backbone(rmt: Any, tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "plain")
    model = RecurrentMemoryModel.from_backbone(tmp_path / "plain", MemoryConfig(2, 16, recent=1))
    model.save_pretrained(tmp_path / "lean", backbone=tmp_path / "plain")
    assert (
        "2 memory tokens of the kind 'tokens', of which 1 are the last tokens read.\n"
        in rmt("info", tmp_path / "lean").out
    )
    assert f"The rest of its weights is that of {tmp_path / 'plain'}.\n" in rmt("info", tmp_path / "lean").out
    assert rmt("info", tmp_path / "lean", "--json").json["backbone_source"] == str(tmp_path / "plain")


def test_the_backbone_of_such_a_model_may_be_elsewhere(rmt: Any, tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "plain")
    model, lean, moved = (
        RecurrentMemoryModel.from_backbone(tmp_path / "plain", MemoryConfig(2, 16)),
        tmp_path / "lean",
        tmp_path / "moved",
    )
    model.save_pretrained(lean, backbone=tmp_path / "plain")
    tiny_tokenizer().save_pretrained(lean)
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    text = tmp_path / "text.txt"
    text.write_text(prose(20), "utf-8")
    state, eval_lm = tmp_path / "a.safetensors", ["--task", "lm", "--text", text, "--max-tokens", "64", "--out"]
    commands = [
        ["read", text, "--model", lean, "--out", state],
        ["ask", state, "Where is Mary?"],
        ["generate", "--state", state, "--max-new-tokens", "3"],
        ["eval", lean, *eval_lm, tmp_path / "lm"],
    ]
    assert [rmt(*command).status for command in commands[:3]] == [0, 0, 0]
    (tmp_path / "plain").rename(moved)
    for command in commands:
        if command[0] == "read":
            command[-1] = tmp_path / "b.safetensors"
        assert "if it is elsewhere, say where with --backbone" in rmt(*command).error
        assert rmt(*command, "--backbone", moved).status == 0
    assert (tmp_path / "b.safetensors").stat().st_size == state.stat().st_size
    assert torch.equal(MemoryState.load(state).memory, MemoryState.load(tmp_path / "b.safetensors").memory)
    window = ["eval", moved, "--window", "16", *eval_lm, tmp_path / "window"]
    assert rmt(*window, "--backbone", moved).error.endswith("moved has no memory, and is whole; leave it out")
    assert rmt(*window).status == 0


def test_a_model_without_a_memory(rmt: Any, tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "plain")
    assert rmt("info", tmp_path / "plain").out.startswith(f"{tmp_path / 'plain'}: a gpt2 model without a memory, ")
    assert rmt("info", tmp_path / "plain", "--json").json["memory"] is None


def test_the_shipped_model(rmt: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recurrent_memory.models

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recurrent_memory.models, "shipped_model_path", lambda: folder)
    assert rmt("info", "shipped").out == rmt("info", folder).out
    monkeypatch.setattr(recurrent_memory.models, "shipped_model_path", lambda: tmp_path / "none")
    assert rmt("info", "shipped").error == "this installation comes without a model; give the path of one"


def test_a_state(rmt: Any, state: Path, folder: Path) -> None:
    loaded = MemoryState.load(state)
    tokens, segments = int(loaded.tokens_read), int(loaded.segments_folded)
    assert rmt("info", state).out == (
        f"{state}: the memory of a text that was read.\n"
        f"Text: book.txt, {tokens:,} tokens\n"
        f"Row 0: {tokens:,} tokens read, {segments} segments of 16 folded, {int(loaded.pending_lengths)} tokens pending.\n"
        f"Remembered: {loaded.num_bytes} bytes (memory [1, 2, 16]).\n"
        f"Model: {folder}, fingerprint {tiny_model().fingerprint}\n"
    )
    values = rmt("info", state, "--json").json
    assert values["kind"] == "state"
    assert values["rows"] == [
        {"tokens_read": tokens, "segments_folded": segments, "pending": int(loaded.pending_lengths)}
    ]
    assert values["texts"] == [{"name": "book.txt", "tokens": tokens}]


def test_a_partial_state(rmt: Any, state: Path) -> None:
    loaded, partial = MemoryState.load(state), state.with_name("x.partial")
    loaded.save(partial, {"reading": "{}"})
    printed = rmt("info", partial).out
    assert printed.startswith(f"{partial}: what an interrupted reading remembered so far.\n")
    assert printed.endswith("Go on with the `rmt read` that was interrupted, and --resume.\n")
    assert rmt("info", partial, "--json").json["kind"] == "partial state"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("nothing", "no such file"),
        ("empty folder", "has no config.json, so it is not a model folder"),
        ("no JSON", "its config.json cannot be read"),
        ("no model type", "its config.json cannot be read"),
        ("damaged weights", "the weights are damaged"),
    ],
)
def test_what_is_neither(rmt: Any, folder: Path, tmp_path: Path, how: str, reason: str) -> None:
    path = tmp_path / "it"
    if how != "nothing":
        path.mkdir()
    if how == "no JSON":
        (path / "config.json").write_text("{")
    elif how == "no model type":
        (path / "config.json").write_text("{}")
    elif how == "damaged weights":
        shutil.copytree(folder, path, dirs_exist_ok=True)
        (path / "model.safetensors").write_bytes(b"1234567890" * 9)
    assert reason in rmt("info", path).error
