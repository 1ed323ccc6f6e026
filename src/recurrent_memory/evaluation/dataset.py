"""BABILong's own evaluation sets: texts that are given, of lengths that have names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..inference.asking import ask
from ..inference.reader import MemoryReader, evaluating
from ..model import RecurrentMemoryModel
from ..tasks.babilong import LongSample, babilong_match, iter_babilong, task_labels
from ..tasks.scoring import exact_match
from .folder import ROWS, open_folder, read_rows, write_rows
from .length import Row
from .length_run import LengthResult, Scoring, conclude


def evaluate_dataset(
    model: RecurrentMemoryModel,
    tokenizer: Any,
    task: str,
    source: str,
    lengths: Sequence[str],
    samples: Sequence[int],
    out: str | Path,
    *,
    scoring: Scoring = "babilong",
    lanes: int = 16,
    resume: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> LengthResult:
    """Ask a model about the texts of BABILong's sets, and keep the answers in a folder, as `evaluate_lengths` does.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        task: `qa1` … `qa20`.
        source: "RMT-team/babilong", or a copy; see `iter_babilong`.
        lengths: The names of the sets, such as "0k", "16k", "1M".
        samples: How many of each set, from its first on.
        out: The folder.
        scoring: "babilong": BABILong's rule; "exact": the answer is the target.
        lanes: Texts read side by side.
        resume: Whether to go on with what is in the folder; a set is read as a whole.
        tell: Called with the samples that are done, and all.

    Raises:
        ConfigError: if a length is no name of a set, or the numbers of lengths and samples differ.
        InputError: if the source cannot be read, or the folder holds another evaluation.
        OutputError: if the folder holds an evaluation already and `resume` is not set.
    """
    if len(lengths) != len(samples):
        raise ConfigError(
            f"lengths={list(lengths)}, samples={list(samples)}: give one number of samples for each length"
        )
    labels, folder, total = task_labels(task), Path(out), sum(samples)
    settings = {
        "task": task,
        "dataset": source,
        "lengths": list(lengths),
        "samples": list(samples),
        "scoring": scoring,
        "model": model.fingerprint,
        "dtype": model.compute_dtype,
    }
    numbers = [_nominal(length) for length in lengths]

    def is_right(answer: str, sample: LongSample) -> bool:
        if scoring == "exact":
            return exact_match(answer, sample.target)
        return babilong_match(answer, sample.target, sample.question, labels)

    rows: list[Row] = []
    started, tokens = time.monotonic(), 0
    with open_folder(folder, settings, resume=resume), evaluating(model):
        for name, length, count in zip(lengths, numbers, samples, strict=True):
            kept = folder / ROWS / f"{name}.json"
            if not kept.is_file():
                before = len(rows)
                found = read_and_ask(
                    model,
                    tokenizer,
                    islice(iter_babilong(task, name, source), count),
                    length,
                    is_right,
                    lanes=lanes,
                    tell=None if tell is None else lambda done, before=before: tell(before + done, total),
                )
                tokens += length * len(found)
                write_rows(kept, found)
            rows += read_rows(kept)
        return conclude(folder, settings, rows, model, f"{task} of {source}", None, tokens=tokens, started=started)


def _nominal(name: str) -> int:
    """What a set's name says of its length.

    Example:
        >>> _nominal("16k"), _nominal("1M")
        (16000, 1000000)
    """
    unit = {"k": 1000, "M": 1_000_000}.get(name[-1:])
    if unit is None or not name[:-1].isdecimal():
        raise ConfigError(f"{name!r} is no length of BABILong's sets; give such as 0k,4k,128k,1M")
    return int(name[:-1]) * unit


def read_and_ask(
    model: RecurrentMemoryModel,
    tokenizer: Any,
    samples: Iterable[LongSample],
    length: int,
    is_right: Callable[[str, LongSample], bool],
    *,
    lanes: int = 16,
    tell: Callable[[int], None] | None = None,
) -> list[Row]:
    """Read given texts, side by side, and ask each its question.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        samples: The texts, taken as lanes are free: at 10M tokens one takes 40 MB.
        length: What the set calls its length, in tokens.
        is_right: Whether an answer is right.
        lanes: Texts at a time.
        tell: Called with the number of samples that are done.

    Returns:
        One row a sample, in order; where the facts stand is not known (`fact_token` and `num_facts` are 0).

    Raises:
        InputError: if a sample cannot be read.
    """
    waiting: dict[int, LongSample] = {}

    def texts() -> Iterator[Iterator[str]]:
        for number, sample in enumerate(samples):
            waiting[number] = sample
            yield iter([sample.input])

    rows: list[Row] = []
    for number, state in MemoryReader(model, tokenizer).read_many(texts(), lanes=lanes):
        sample = waiting.pop(number)
        only_the_end = model.read(state.pending)  # the last segment is pending: what a memory that was reset has seen
        kept, reset = (ask(model, tokenizer, memory, [sample.question])[0] for memory in (state, only_the_end))
        rows.append(
            Row(
                length=length,
                sample=number,
                num_facts=0,
                fact_token=0,
                question=sample.question,
                target=sample.target,
                answer=kept.text,
                probability=round(kept.probability, 6),
                right=is_right(kept.text, sample),
                reset_answer=reset.text,
                reset_right=is_right(reset.text, sample),
            )
        )
        if tell is not None:
            tell(len(rows))
    return sorted(rows, key=lambda row: row.sample)
