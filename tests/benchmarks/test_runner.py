"""`python -m benchmarks --quick`: each benchmark from its command to its files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import NAMES, main

CONTENDERS = {
    "reading": {
        "ours",
        "ours, no shortcuts",
        *(["ours, compiled"] if shutil.which("g++") else []),
        "ours, int8",
        "ours, associative",
        "plain research loop",
        "full attention, KV cache",
        "sliding window",
        "Mamba",
    },
    "lanes": {
        "ours, lanes",
        "ours, one by one",
        "ours, lanes, compiled",
        "ours, lanes, int8",
        "plain research loop, one batch",
        "plain research loop, one by one",
    },
    "generation": {"ours", "ours without cache", "full attention, KV cache"},
    "training": {
        name + of for name in ("ours, full", "ours, recomputed", "plain research loop") for of in ("", ", an answer")
    },
    "diagonal": {
        f"{kind}, 2 layers of 16, {schedule}"
        for kind in ("associative", "per-layer")
        for schedule in ("sequential", "diagonal")
    },
    "scaling": {"ours", "ours, associative", "full attention, KV cache"},
}


ROOT = Path(__file__).parents[2]


def run(name: str, folder: Path) -> dict[str, Any]:
    if name != "reading":
        main(["--quick", "--only", name, "--out", str(folder)])
        return json.loads((folder / f"{name}.json").read_text())
    # The one that is also a command of its own.
    command = [sys.executable, "benchmarks/reading.py", "--json", "--quick", "--threads", "1", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads((folder / f"{name}.json").read_text())
    assert json.loads(done.stdout) == found
    assert found["command"].startswith("python -m benchmarks --only reading --json --quick")
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "writing"])
@pytest.mark.filterwarnings("ignore")  # Mamba says that its fast kernels are not there
def test_a_benchmark(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    for key in ("command", "commit", "seed", "versions", "processor", "cores", "threads", "setting"):
        assert found[key], key
    assert found["matmul_gflops_per_s"] > 0
    measured = [row for row in found["rows"] if "median_s" in row]
    assert {row["contender"] for row in measured} - {"recurrent-memory-transformer-pytorch"} == CONTENDERS[name]
    for row in measured:
        assert len(row["seconds"]) == 2
        assert row["low_s"] <= row["median_s"] <= row["high_s"]
        if name != "scaling":
            assert row["matmul_flops"] > 0
            assert row["share_of_matmul_peak"] > 0
    assert list(tmp_path.glob(f"{name}-*.png"))
    assert f"## {name.capitalize()}" in (tmp_path / "README.md").read_text()
    checks = {
        "reading": lambda: [row["memory_difference_from_plain"] for row in measured if row["contender"] == "ours"],
        "lanes": lambda: [row["memory_difference_from_plain"] for row in measured if row["contender"] == "ours, lanes"],
        "diagonal": lambda: [
            row["memory_difference_from_sequential"] for row in measured if row["contender"].endswith("diagonal")
        ],
        "training": lambda: [row[f"{what}_difference_from_plain"] for row in measured for what in ("loss", "gradient")],
    }
    differences = checks[name]() if name in checks else []
    assert all(difference < 1e-4 for difference in differences)  # float32
    assert bool(differences) == (name in checks)
    if name in ("reading", "lanes"):
        peers = [row for row in measured if row["contender"] == row.get("peer")]
        assert peers
        assert all(row["times_peer"] == 1 for row in peers)
    if name == "generation":
        kept = {row["contender"]: row["kept_bytes"] for row in measured}
        assert kept["ours without cache"] < kept["ours"] < kept["full attention, KV cache"]
    if name == "scaling":
        assert {row["contender"] for row in found["rows"] if row.get("kind") == "slope"} == CONTENDERS[name]


@pytest.mark.parametrize("name", ["reading", "diagonal", "scaling"])
@pytest.mark.filterwarnings("ignore")
def test_in_bfloat16(name: str, tmp_path: Path) -> None:
    main(["--quick", "--only", name, "--dtype", "bfloat16", "--out", str(tmp_path)])
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["setting"]["dtype"] == "bfloat16"
    measured = {row["contender"] for row in found["rows"] if "median_s" in row}
    assert measured >= CONTENDERS[name] - {"ours, int8", "ours, compiled"}


def test_without_a_folder_json_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--only", "generation"])
    assert json.loads(capsys.readouterr().out)["benchmark"] == "generation"


def test_what_cannot_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "reading,writhing"])
    assert (
        "--only writhing: not a benchmark; choose from reading,lanes,generation,writing,training,diagonal,scaling"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
    assert "--rounds 0: must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--min-tokens", "65", "--max-tokens", "64"])
    assert "--min-tokens 65 is above --max-tokens 64" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--model", "shipped", "--segment-length", "64"])
    assert "--segment-length 64: must be at least 1, of a model without its own" in capsys.readouterr().err


def test_segments_and_the_shortest_text_can_be_chosen(tmp_path: Path) -> None:
    main(
        f"--only training --model tiny --segment-length 4 --min-tokens 8 --max-tokens 16 --rounds 1 --out {tmp_path}".split()
    )
    rows = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert {(row["segments"], row["tokens"]) for row in rows} == {(2, 8), (4, 16)}


def test_reading_is_a_module_too() -> None:
    command = [sys.executable, "-m", "benchmarks.reading", "--rounds", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--rounds 0: must be at least 1" in done.stderr
