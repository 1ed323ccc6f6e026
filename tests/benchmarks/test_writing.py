"""One long text written: the runner's rows, what the peer writes, and where it stops."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.common import Report, Setting
from benchmarks.generation import FULL, OURS
from benchmarks.models import load
from benchmarks.writing import EnoughError, Meter, attend


def test_rows_from_the_start_to_the_end(tmp_path: Path) -> None:
    main(["--quick", "--only", "writing", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "writing.json").read_text())["rows"]
    written = [8, 16, 32, 64]  # of 64 tokens, in segments of 8
    assert [(row["contender"], row["tokens_written"]) for row in rows] == [
        (name, tokens) for name in (OURS, FULL) for tokens in written
    ]
    for row in rows:
        assert 0 < row["low_ms_per_token"] <= row["ms_per_token"] <= row["high_ms_per_token"]
        assert row["peak_memory_mb"] is None or row["peak_memory_mb"] >= 0
    assert [row["segments"] for row in rows[:4]] == [1, 1, 2, 4]
    assert (tmp_path / "writing-ms_per_token.png").is_file()


def test_the_peer_writes_what_its_backbone_does() -> None:
    model = load("tiny")
    start = torch.randint(1, 64, (1, 8), generator=torch.Generator().manual_seed(0))
    taken: list[int] = []
    attend(model, start, 12, taken.append)
    expected = model.backbone.generate(start, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert taken == expected[0, 8:].tolist()


def test_a_stretch_over_the_budget_is_left_out_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(second) for second in range(100))
    monkeypatch.setattr("benchmarks.writing.time.perf_counter", lambda: next(now))  # a second for each segment
    report = Report("writing", "tokens_written", ())
    meter = Meter(FULL, [2, 8], 4, Setting(budget_s=3), report, power=1)
    with pytest.raises(EnoughError):
        for token in range(8):
            meter.take(token)
    assert report.rows[0]["tokens_written"] == 8
    assert report.rows[0]["ms_per_token"] == 250
    assert report.rows[1:] == [
        {
            "contender": FULL,
            "skipped": "about 4 s a run from here on, more than 3 s",
            "tokens_written": 32,
        }
    ]
