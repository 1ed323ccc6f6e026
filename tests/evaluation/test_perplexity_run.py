"""An evaluation of a text in a folder: every loss, the tables, going on after an interruption, comparing two."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurrent_memory.errors import ConfigError, InputError, OutputError
from recurrent_memory.evaluation import perplexity_run, perplexity_store
from recurrent_memory.evaluation.perplexity import MemoryReading
from recurrent_memory.evaluation.perplexity_compare import compare
from recurrent_memory.evaluation.perplexity_plan import Choice
from recurrent_memory.evaluation.perplexity_run import PerplexityResult, evaluate_perplexity
from recurrent_memory.evaluation.perplexity_store import read_tokens
from recurrent_memory.evaluation.perplexity_window import WindowReading
from recurrent_memory.inference.documents import open_documents
from tiny_models import S, prose, tiny_backbone, tiny_model, tiny_tokenizer

TEXTS = [prose(40, 1), "", prose(3, 2), prose(20, 3), "x"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return path


def run(text: Path, out: Path, reading: Any = None, choice: Choice | None = None, **more: Any) -> PerplexityResult:
    reading = reading or MemoryReading(tiny_model())
    return evaluate_perplexity(reading, tiny_tokenizer(), open_documents(text), choice or Choice(), out, **more)


def tokens_of(folder: Path) -> dict[str, np.ndarray]:
    blocks = list(read_tokens(folder))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_every_loss_and_what_they_say(text: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    result = run(text, tmp_path / "out", lanes=2, tell=lambda done, total: told.append((done, total)))
    kept = tokens_of(tmp_path / "out")
    ids = [tiny_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    expected = {"nll": [], "document": [], "position": [], "history": []}
    model = tiny_model()
    for number, row in enumerate(ids):
        if len(row) > 1:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row])).logits[0].log_softmax(1)
            for place, token in enumerate(row[1:]):
                values = (-float(logits[place, token]), number, place % S, place // S)
                for name, value in zip(expected, values, strict=True):
                    expected[name].append(value)
    assert [str(kept[name].dtype) for name in expected] == ["float32", "int32", "int32", "int32"]
    np.testing.assert_allclose(kept["nll"], expected["nll"], rtol=1e-4, atol=1e-5)
    for name in ("document", "position", "history"):
        assert kept[name].tolist() == expected[name]

    nll, summary = kept["nll"].astype(float), result.summary
    assert told[-1] == (len(nll), len(nll))
    assert (summary.documents, summary.scored_tokens, summary.unscored_tokens) == (5, len(nll), 4)
    assert result.tokens == sum(len(row) for row in ids if len(row) > 1)
    assert math.isclose(summary.perplexity, math.exp(nll.mean()))
    assert math.isclose(summary.word_perplexity, math.exp(nll.sum() / sum(len(text.split()) for text in TEXTS)))
    assert math.isclose(summary.bits_per_byte, nll.sum() / math.log(2) / sum(len(text.encode()) for text in TEXTS))

    def groups(by: str) -> dict[str, tuple[int, float]]:
        return {line.group: (line.n, line.nll) for line in result.lines if line.by == by}

    def mean(which: np.ndarray) -> tuple[int, Any]:
        return int(which.sum()), pytest.approx(nll[which].mean())

    assert groups("all") == {"": mean(nll > -1)}
    ranges = {"0": (0, 0), "1": (1, 1), "2–3": (2, 3), "4–7": (4, 7), "8–15": (8, 15)}
    for by, which in (("position", kept["history"] >= 0), ("position_with_history", kept["history"] > 0)):
        assert groups(by) == {
            name: mean((kept["position"] >= low) & (kept["position"] <= high) & which)
            for name, (low, high) in ranges.items()
        }
    for name, found in groups("history").items():
        low, high = ranges.get(name, (16, 31))
        assert found == mean((kept["history"] >= low) & (kept["history"] <= high))
    assert groups("document") == {f"text.jsonl:{number + 1}": mean(kept["document"] == number) for number in (0, 2, 3)}

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["perplexity"] == summary.perplexity
    assert results["lines"] == [line.to_dict() for line in result.lines]
    assert results["sources"]["files"][0]["name"] == "text.jsonl"
    assert (tmp_path / "out" / "perplexity.csv").read_text().startswith("by,group,first,n,nll,perplexity\nall,,0,")
    assert (tmp_path / "out" / "perplexity.png").stat().st_size > 1000
    assert not list((tmp_path / "out" / "rows").iterdir())


def test_lanes_and_files_change_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(text, tmp_path / "a", lanes=1)
    monkeypatch.setattr(perplexity_store, "TOKENS_PER_FILE", 100)
    monkeypatch.setattr(perplexity_store.TokenStore.__init__, "__defaults__", (30,))
    run(text, tmp_path / "b", lanes=7)
    sizes = [len(block["nll"]) for block in read_tokens(tmp_path / "b")]
    assert len(sizes) > 1
    assert set(sizes[:-1]) == {100}
    first, second = tokens_of(tmp_path / "a"), tokens_of(tmp_path / "b")
    np.testing.assert_allclose(first.pop("nll"), second.pop("nll"), rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_going_on(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(text, tmp_path / "whole", lanes=1)
    out = tmp_path / "out"
    first = whole.lines[-3].n  # of the first document
    assert whole.lines[-3].group == "text.jsonl:1"

    def stop(done: int, _: int) -> None:
        if done > first + 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(perplexity_store.TokenStore.__init__, "__defaults__", (30,))  # several parts of a document
    with pytest.raises(KeyboardInterrupt):
        run(text, out, lanes=1, tell=stop)
    with pytest.raises(InputError, match="holds no finished evaluation"):
        compare(tmp_path / "whole", out)
    with pytest.raises(OutputError, match="holds an evaluation already; go on with --resume"):
        run(text, out)
    with pytest.raises(InputError, match="holds an evaluation with another reading"):
        run(text, out, MemoryReading(tiny_model(), reset=True), resume=True)
    with pytest.raises(InputError, match="holds an evaluation with another max_tokens, scored_sha256"):
        run(text, out, choice=Choice(max_tokens=9), resume=True)
    result = run(text, out, lanes=1, resume=True)
    assert result.tokens == whole.tokens - (first + 1)
    assert result.summary == whole.summary
    assert result.lines == whole.lines
    again = run(text, out, resume=True)
    assert (again.tokens, again.summary) == (0, whole.summary)


def test_stopped_while_the_tables_are_made(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(perplexity_run, "draw_perplexity", fail)
        with pytest.raises(KeyboardInterrupt):
            run(text, tmp_path / "out")
    assert run(text, tmp_path / "out", resume=True).tokens == 0
    tokens = tmp_path / "out" / "tokens"
    perplexity_store._save(tokens / "00000.safetensors", {n: v[:-1] for n, v in tokens_of(tmp_path / "out").items()})
    with pytest.raises(InputError, match=r"losses are there, of [0-9,]+: some were lost"):
        run(text, tmp_path / "out", resume=True)
    (tokens / "00000.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="00000.safetensors: is damaged"):
        run(text, tmp_path / "out", resume=True)
    (tokens / "00000.safetensors").unlink()
    with pytest.raises(InputError, match="holds no finished evaluation of a text"):
        run(text, tmp_path / "out", resume=True)


def test_what_is_left_of_a_damaged_document_is_not_counted(text: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(text, out, lanes=1, tell=stop)
    kept = out / "rows" / "0000002.safetensors"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-4])
    with pytest.raises(
        InputError, match=r"0000002.safetensors: is damaged .*delete it, and its document is read again"
    ):
        run(text, out, resume=True)
    perplexity_store._save(kept, {"nll": np.zeros(2, np.float32)}, {"parts": "0"})
    with pytest.raises(InputError, match=r"0000002.safetensors: has 2 losses of .*delete it"):
        run(text, out, resume=True)
    kept.unlink()
    assert run(text, out, resume=True).summary.scored_tokens > 0


def test_nothing_is_made_where_nothing_can_be(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lanes=0"):
        run(text, tmp_path / "out", lanes=0)
    text.write_text('{"text": ""}')
    with pytest.raises(InputError, match="nothing to score"):
        run(text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_reset_and_window_score_the_same_tokens(text: Path, tmp_path: Path) -> None:
    model = tiny_model()
    readings = {
        "memory": MemoryReading(model),
        "reset": MemoryReading(model, reset=True),
        "window": WindowReading(tiny_backbone(), 64),
        "overlapping": WindowReading(tiny_backbone(), 64, 24),
    }
    found = {name: run(text, tmp_path / name, reading) for name, reading in readings.items()}
    assert len({result.summary.scored_sha256 for result in found.values()}) == 1
    assert len({result.summary.scored_tokens for result in found.values()}) == 1
    assert len({result.summary.perplexity for result in found.values()}) == 4
    sizes = {name: json.loads((tmp_path / name / "results.json").read_text())["state_bytes"] for name in readings}
    assert sizes == {"memory": model.initial_state(1).num_bytes, "reset": 0, "window": 0, "overlapping": 0}
    result = compare(tmp_path / "reset", tmp_path / "memory", tokens_per_block=16, resamples=200)
    assert math.isclose(
        result.ratio, found["memory"].summary.perplexity / found["reset"].summary.perplexity, rel_tol=1e-9
    )
    assert result.low <= result.difference <= result.high
    assert math.isclose(result.ratio_high, math.exp(result.high))
    assert compare(tmp_path / "reset", tmp_path / "memory", tokens_per_block=16, resamples=200) == result
    other = compare(tmp_path / "reset", tmp_path / "memory", tokens_per_block=16, resamples=200, seed=1)
    assert (other.difference, other.low == result.low) == (result.difference, False)
    turned = compare(tmp_path / "memory", tmp_path / "reset", tokens_per_block=16, resamples=200)
    assert (turned.low, turned.high) == (pytest.approx(-result.high), pytest.approx(-result.low))
    single = compare(tmp_path / "reset", tmp_path / "memory")
    assert (single.blocks, single.low, single.ratio_high) == (1, None, None)


def test_a_model_without_memory_keeps_nothing() -> None:
    assert MemoryReading(tiny_model(num_memory_tokens=0)).state_bytes == 0


def test_other_tokens_are_not_compared(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path / "a")
    run(text, tmp_path / "b", choice=Choice(max_tokens=100))
    with pytest.raises(InputError, match="did not score the same tokens"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="holds no finished evaluation"):
        compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ConfigError, match="resamples=0 must be at least 1"):
        compare(tmp_path / "a", tmp_path / "a", resamples=0)


def test_the_interval_is_that_of_a_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 blocks whose differences are known: mean 0.02, standard error of the mean 0.05 / 20."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=400)
    blocks = (blocks - blocks.mean()) / blocks.std() * 0.05 + 0.02
    base = rng.normal(3, 1, 400 * 8)
    for name, nll in (("a", base), ("b", base + np.repeat(blocks, 8))):
        (tmp_path / name / "tokens").mkdir(parents=True)
        (tmp_path / name / "results.json").write_text('{"scored_sha256": "0"}')
        for number, start in enumerate(range(0, len(nll), 1001)):  # files end anywhere
            path = tmp_path / name / "tokens" / f"{number:05d}.safetensors"
            perplexity_store._save(path, {"nll": nll[start : start + 1001]})
    result = compare(tmp_path / "a", tmp_path / "b", tokens_per_block=8)
    assert result.blocks == 400
    assert result.difference == pytest.approx(0.02)
    assert result.low == pytest.approx(0.02 - 1.96 * 0.0025, abs=3e-4)
    assert result.high == pytest.approx(0.02 + 1.96 * 0.0025, abs=3e-4)
