"""An evaluation in a folder: what was asked for, the rows of every group, the table; it goes on where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, InputError
from ..inference.peak_memory import peak_rss_mb
from ..inference.reader import evaluating
from ..model import RecurrentMemoryModel
from ..state import MemoryState
from ..tasks.base import Sample, Task
from ..tasks.noise_source import NoiseSource
from ..tasks.noise_window import Boundary
from ..tasks.scoring import exact_match
from .folder import open_folder, read_rows, write_results, write_rows
from .length import Group, GroupReading, Row, Standing, check_lengths, plan_groups
from .length_table import Line

Scoring = Literal["exact", "babilong"]
PARTIAL = "partial.safetensors"


@dataclass(frozen=True, slots=True)
class LengthEvaluation:
    """What is evaluated.

    Args:
        task: The name of the task, for the record.
        lengths: Tokens of the texts.
        samples: How many for each length.
        seed: All that is random is a function of it.
        lanes: Texts read side by side; they change no answer but by rounding.
        boundary: Whether a fact may stand after any sentence, or any word.
        scoring: "exact": the answer is the target; "babilong": BABILong's rule.
        options: What the task was made with, for the record.

    Raises:
        ConfigError: if the numbers of lengths and samples differ, or a value is unknown.
    """

    task: str
    lengths: tuple[int, ...]
    samples: tuple[int, ...]
    seed: int = 0
    lanes: int = 32
    boundary: Boundary = "sentence"
    scoring: Scoring = "exact"
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("boundary", self.boundary, ("sentence", "word")),
            ("scoring", self.scoring, ("exact", "babilong")),
        ):
            if value not in accepted:
                raise ConfigError(f"{name}={value!r} is unknown; give one of {', '.join(accepted)}")
        if len(set(self.lengths)) != len(self.lengths):
            raise ConfigError(f"lengths={list(self.lengths)} names a length twice; give each once")


@dataclass(frozen=True, slots=True)
class LengthResult:
    """What an evaluation found.

    Args:
        lines: The table.
        rows: Every answer.
        tokens: That the model read in this run.
        elapsed_s: Of this run.
        peak_rss_mb: The most memory that the process has had, in 10^6 bytes.
    """

    lines: list[Line]
    rows: list[Row] = field(repr=False)
    tokens: int
    elapsed_s: float
    peak_rss_mb: float


def evaluate_lengths(
    model: RecurrentMemoryModel,
    tokenizer: Any,
    task: Task,
    noise: NoiseSource,
    plan: LengthEvaluation,
    out: str | Path,
    *,
    resume: bool = False,
    save_every_s: float = 60.0,
    tell: Callable[[int, int], None] | None = None,
) -> LengthResult:
    """Ask a model about facts in texts of many lengths, and keep the answers in a folder.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        task: Makes the samples.
        noise: What they are hidden in.
        plan: What is asked.
        out: The folder: `evaluation.json` (the plan), `rows/` (every answer), `accuracy.csv`, `results.json`,
            `accuracy.png`.
        resume: Whether to go on with what is in the folder.
        save_every_s: Seconds between savings of what is remembered.
        tell: Called with the tokens of texts that are done, and of all.

    Raises:
        ConfigError: if the plan cannot be.
        OutputError: if the folder holds an evaluation already and `resume` is not set, or cannot be written.
        InputError: if the folder holds another evaluation than this one, or the noise cannot be read.
    """
    folder = Path(out)
    groups = plan_groups(task, plan.lengths, plan.samples, plan.lanes)
    check_lengths(task, tokenizer, plan.lengths)
    settings = {
        **json.loads(json.dumps(asdict(plan))),
        "model": model.fingerprint,
        "dtype": model.compute_dtype,
        "noise": noise.name,
        "noise_sha256": noise.sha256,
    }
    score = _scorer(plan)
    total, done, read = sum(group.num_tokens for group in groups), 0, 0
    rows: list[Row] = []
    started = time.monotonic()
    with open_folder(folder, settings, resume=resume), evaluating(model):
        for group in groups:
            kept = folder / "rows" / f"{group.name}.json"
            if not kept.is_file():
                reading = GroupReading(
                    group, model, tokenizer, task, noise, seed=plan.seed, boundary=plan.boundary, score=score
                )

                def report(index: int, reading: GroupReading = reading, before: int = done) -> None:
                    if tell is not None:
                        tell(before + round(reading.group.num_tokens * index / reading.num_segments), total)

                found, tokens = _read_group(reading, model, folder / PARTIAL, save_every_s, report)
                read += tokens
                write_rows(kept, found)
                (folder / PARTIAL).unlink(missing_ok=True)
            rows += read_rows(kept)
            done += group.num_tokens
        chance = 1 / len(task.answers) if task.answers else None
        title = plan.task if task.placement == "alone" else f"{plan.task} in {noise.name}"
        return conclude(folder, settings, rows, model, title, chance, tokens=read, started=started)


def conclude(
    folder: Path,
    settings: dict[str, Any],
    rows: list[Row],
    model: RecurrentMemoryModel,
    title: str,
    chance: float | None,
    *,
    tokens: int,
    started: float,
) -> LengthResult:
    """Write what an evaluation found, and what it took.

    Args:
        folder: Its folder.
        settings: What was asked for.
        rows: Every answer.
        model: That was asked.
        title: Of the plot.
        chance: The accuracy of guessing; None: the answers are open.
        tokens: That the model read in this run.
        started: When it began, by `time.monotonic`.
    """
    cost = {"elapsed_s": round(time.monotonic() - started, 1), "peak_rss_mb": round(peak_rss_mb(), 1)}
    made = {"fast": model.fast, "tokens_read": tokens, "state_bytes": model.initial_state(1).num_bytes, **cost}
    lines = write_results(folder, settings, rows, model.memory_config.segment_length, title, chance, made)
    return LengthResult(lines, rows, tokens, **cost)


def _scorer(plan: LengthEvaluation) -> Callable[[str, Sample], bool]:
    if plan.scoring == "exact":
        return lambda answer, sample: exact_match(answer, sample.answer)
    from ..tasks.babilong import babilong_match, task_labels

    labels = task_labels(plan.task)
    return lambda answer, sample: babilong_match(answer, sample.answer, sample.question, labels)


def _read_group(
    reading: GroupReading,
    model: RecurrentMemoryModel,
    partial: Path,
    save_every_s: float,
    report: Callable[[int], None],
) -> tuple[list[Row], int]:
    """The rows of a group, and the tokens that the model read for them."""
    standing = _restore(partial, reading.group, model)
    if standing is None:
        standing = reading.begin()
    else:
        reading.skip_to(standing)
    report(standing.index)  # where this run begins: the speed that is shown is its own
    saved, tokens = time.monotonic(), 0
    while standing.index < reading.num_segments:
        tokens += reading.advance(standing)
        report(standing.index)
        if time.monotonic() - saved > save_every_s:
            _keep(partial, reading.group, standing)
            saved = time.monotonic()
    return standing.rows, tokens


def _keep(partial: Path, group: Group, standing: Standing) -> None:
    """The state with all else in its metadata: one file, so that they are always of one moment."""
    standing.state.save(
        partial,
        {
            "group": group.name,
            "index": str(standing.index),
            "rows": json.dumps([row.to_dict() for row in standing.rows]),
        },
    )


def _restore(partial: Path, group: Group, model: RecurrentMemoryModel) -> Standing | None:
    if not partial.is_file():
        return None
    metadata = MemoryState.read_metadata(partial)
    if metadata.get("group") != group.name:
        return None
    state = MemoryState.load(partial, model=model)
    try:
        rows = [Row(**row) for row in json.loads(metadata["rows"])]
        return Standing(int(metadata["index"]), state, rows)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{partial}: is not what an evaluation keeps ({error}); delete it") from error


def parse_lengths(text: str) -> tuple[int, ...]:
    """Numbers with commas between them; k and M stand for thousands and millions.

    Raises:
        ConfigError: if one is not a whole number of at least 1.

    Example:
        >>> parse_lengths("512,4k,2M")
        (512, 4000, 2000000)
    """
    units = {"k": 1000, "m": 1_000_000}
    numbers: list[int] = []
    for part in text.split(","):
        digits, unit = part.strip().replace("_", ""), 1
        if digits[-1:].lower() in units:
            digits, unit = digits[:-1], units[digits[-1].lower()]
        if not digits.isdecimal() or int(digits) < 1:
            raise ConfigError(f"{part.strip()!r} is not a number of at least 1; give such as 512,4k,2M")
        numbers.append(int(digits) * unit)
    return tuple(numbers)


def samples_for(lengths: Sequence[Any], samples: Sequence[int]) -> tuple[int, ...]:
    """How many samples for each length: one number for all, or one for each.

    Raises:
        ConfigError: if there are as many of neither.
    """
    if len(samples) == 1:
        return tuple(samples) * len(lengths)
    if len(samples) != len(lengths):
        raise ConfigError(
            f"--samples has {len(samples)} numbers for {len(lengths)} lengths; give one for all, or one for each"
        )
    return tuple(samples)
