"""All benchmarks of speed and memory, ours beside its peers in one process.

    python -m benchmarks [--only reading,lanes,generation,writing,training,diagonal,scaling] [--device cpu] [--out FOLDER] [--quick]

Each writes `<out>/<name>.json` (rows, and what is needed to make them again), its plots, and its part of a README.
Contenders run by turns, each round in an order of its own, after a warm-up; medians come with their intervals, and beside
them stands what the machine can do at most, a large matrix product and a matrix–vector product. A contender that cannot
run, or would take too long, is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from recurrent_memory.files import atomic_write

from .common import SEED, Peak, Setting, provenance
from .models import SHAPES

NAMES = ("reading", "lanes", "generation", "writing", "training", "diagonal", "scaling")
QUICK = Setting(model="tiny", max_tokens=64, rounds=2)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(NAMES), help="some of them, with commas between")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--out", type=Path, help="the folder for the JSON files and plots; without it, JSON is printed")
    parser.add_argument("--model", default=Setting.model, help="small, 135m, 1b, smollm2, shipped, or a model folder")
    parser.add_argument("--segment-length", type=int, help="tokens of a segment; not of a model that has its own")
    parser.add_argument("--max-tokens", type=int, default=Setting.max_tokens, help="the longest text")
    parser.add_argument("--min-tokens", type=int, default=1, help="the shortest, of reading, training and scaling")
    parser.add_argument("--rounds", type=int, default=Setting.rounds, help="runs of each at each length; 6 for 95 %%")
    parser.add_argument(
        "--budget", type=float, default=Setting.budget_s, help="leave out what takes more seconds a run"
    )
    parser.add_argument(
        "--dtype", default=Setting.dtype, choices=["float32", "bfloat16"], help="of all models; bfloat16 on a GPU"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, as without --out")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, help="of the processor; by default as PyTorch chooses")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short texts: whether it runs, no more")
    found = parser.parse_args(arguments)
    unknown = sorted(set(found.only.split(",")) - set(NAMES))
    if unknown:
        parser.error(f"--only {','.join(unknown)}: not a benchmark; choose from {','.join(NAMES)}")
    for name in ("max_tokens", "min_tokens", "rounds"):
        if getattr(found, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(found, name)}: must be at least 1")
    if found.segment_length is not None and (found.segment_length < 1 or found.model not in {*SHAPES, "smollm2"}):
        parser.error(
            f"--segment-length {found.segment_length}: must be at least 1, of a model without its own: smollm2, small, 135m, 1b"
        )
    if found.min_tokens > found.max_tokens:
        parser.error(f"--min-tokens {found.min_tokens} is above --max-tokens {found.max_tokens}; give a shorter one")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run them one after the other; each is written when it is done."""
    found = parse(arguments)
    if found.threads:
        torch.set_num_threads(found.threads)
    setting = Setting(
        found.model,
        found.device,
        found.max_tokens,
        found.rounds,
        found.budget,
        found.seed,
        found.min_tokens,
        found.segment_length,
        found.dtype,
    )
    if found.quick:
        setting = replace(QUICK, device=found.device, seed=found.seed, dtype=found.dtype)
    size = 256 if found.quick else 2048
    for name in [name for name in NAMES if name in found.only.split(",")]:
        print(name, file=sys.stderr, flush=True)
        peak = Peak.measure(setting.device, size, dtype=setting.dtype)
        about = provenance(setting, peak)  # before it, since the commit may be another one after hours
        report = import_module(f".{name}", __package__).run(setting, peak)
        document = {"benchmark": name, **about, "rows": report.rows}
        if found.out is None or found.json:
            print(json.dumps(document))
        if found.out is None:
            continue
        from .plots import plot
        from .tables import write_readme

        found.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(found.out / f"{name}.json") as part:
            part.write_text(json.dumps(document, indent=1), encoding="utf-8")
        plot(report, found.out)
        write_readme(found.out)


if __name__ == "__main__":
    main()
