"""Accuracy of who-is-where against length, for a model: the tables and the plot in `results/`.

    python -m benchmarks.whereabouts --out results/FOLDER [--model FOLDER] [--jobs anywhere,first,four,distractors]

Every job's rows are kept in `<out>/rows/`; a job that is there is not run again, so an interrupted run goes on. The
text is the demo's: Python's language reference and library sources; its hash and the seeds are recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.progress import Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn

from recurrent_memory.errors import InputError
from recurrent_memory.evaluation.composite import NoiseText
from recurrent_memory.evaluation.provenance import machine
from recurrent_memory.evaluation.whereabouts import Job, run_job
from recurrent_memory.files import atomic_write
from recurrent_memory.models import load_model
from recurrent_memory.tasks.library_text import take_text, text_hash

from .whereabouts_report import write_report

SEED = 20261121
SAMPLES = {
    128: 200,
    1_024: 200,
    4_096: 200,
    8_192: 200,
    16_384: 200,
    65_536: 200,
    262_144: 100,
    524_288: 50,
    1_000_000: 200,
    2_048_000: 50,
}
FIRST = [
    (128, 200),
    (1_024, 200),
    (4_096, 200),
    (8_192, 200),
    (16_384, 200),
    (65_536, 200),
    (262_144, 100),
    (524_288, 50),
    (1_000_000, 50),
]


def jobs(kinds: list[str]) -> list[Job]:
    """What is run, in order of cost."""
    every: dict[str, list[Job]] = {
        "anywhere": [Job("anywhere", length, samples, SEED) for length, samples in SAMPLES.items()],
        "first": [
            Job("first", 65_536, 200, SEED, tuple((at, n) for at, n in FIRST if at < 65_536)),
            Job("first", 262_144, 100, SEED),
            Job("first", 2_048_000, 50, SEED, ((524_288, 50), (1_000_000, 50))),
        ],
        "four": [Job("four", 65_536, 50, SEED), Job("four", 1_000_000, 50, SEED)],
        "distractors": [Job("distractors", 65_536, 200, SEED), Job("distractors", 1_000_000, 50, SEED)],
    }
    return sorted((job for kind in kinds for job in every[kind]), key=lambda job: job.length * job.samples)


class _Count:
    """Counts tokens read, and moves the progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task, self.tokens = progress, task, 0

    def __call__(self, tokens: int) -> None:
        self.tokens += tokens
        self.progress.advance(self.task, tokens)


def is_done(path: Path, fingerprint: str, dtype: str) -> bool:
    """Whether a job's rows are there.

    Raises:
        InputError: if they are another model's, or in another dtype.
    """
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as stream:
        record = json.loads(stream.readline())
    found = record["fingerprint"], record.get("dtype", "float32")  # which was the only one once
    if found != (fingerprint, dtype):
        raise InputError(
            f"{path}: holds the answers of the model {found[0]} in {found[1]}, this is {fingerprint} in {dtype}; give another --out"
        )
    return True


def main() -> None:
    """Run what is missing, then write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="a model folder; by default the shipped model")
    parser.add_argument("--jobs", default="anywhere,first,four,distractors")
    parser.add_argument("--max-tokens", type=int, default=10_000_000, help="leave out longer jobs")
    parser.add_argument("--only", help="run these jobs, by name, with commas between them")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32", choices=["float32", "int8"])
    arguments = parser.parse_args()
    running = machine()  # at the start: whatever is committed meanwhile, this is what runs
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model, "cpu", arguments.dtype)
    folder: Path = arguments.out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [job for job in jobs(arguments.jobs.split(",")) if job.length <= arguments.max_tokens]
    if arguments.only:
        if unknown := set(arguments.only.split(",")) - {job.name for job in wanted}:
            parser.error(
                f"--only: there is no job {', '.join(sorted(unknown))}; there are {', '.join(j.name for j in wanted)}"
            )
        wanted = [job for job in wanted if job.name in arguments.only.split(",")]
    try:
        missing = [j for j in wanted if not is_done(folder / f"{j.name}.jsonl", model.fingerprint, arguments.dtype)]
    except InputError as error:
        parser.error(str(error))
    longest = max((job.length for job in missing), default=0)
    text = take_text(int(longest * 4.2) + 10_000)
    noise = NoiseText(text, tokenizer)
    for job in missing:
        started = time.perf_counter()
        columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(job.name, total=job.length * job.samples * (1.0 if job.mode == "first" else 0.55))
            count = _Count(progress, task)
            rows = run_job(job, model, tokenizer, noise, count)
        read = count.tokens
        seconds = time.perf_counter() - started
        used = text[: int(noise.starts[min(job.length, len(noise.starts) - 1)])]
        record = {
            "job": job.name,
            "seed": job.seed,
            "fingerprint": model.fingerprint,
            "seconds": round(seconds, 1),
            "tokens_read": read,
            "tokens_per_s": round(read / seconds),
            "text_sha256": text_hash(used),
            "text_chars": len(used),
            "text_bytes_per_token": round(len(used.encode()) / job.length, 3),
            "command": " ".join(["python", "-m", "benchmarks.whereabouts", *sys.argv[1:]]),
            "threads": torch.get_num_threads(),
            "dtype": arguments.dtype,
            **running,
        }
        with atomic_write(folder / f"{job.name}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in [record, *rows]), encoding="utf-8")
        longest_rows = [row for row in rows if row["length"] == job.length]
        right = sum(row["right"] for row in longest_rows)
        speed = f"{seconds:.0f} s, {read / seconds:,.0f} tokens/s"
        print(f"{job.name}: {right} of {len(longest_rows)} right, {speed}", flush=True)
    write_report(arguments.out)


if __name__ == "__main__":
    main()
