"""`rmt eval --task lambada`: the last word of passages, with memory, with it reset, or of a plain model in a window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .common import Common

if TYPE_CHECKING:
    from ..evaluation.last_word import WordReader
    from ..evaluation.last_word_run import LastWordResult

LAMBADA = "EleutherAI/lambada_openai"


def evaluate_words(
    common: Common,
    model: str | None,
    out: str,
    tell: Callable[[int, int], None],
    *,
    text: str | None,
    split: str | None,
    limit: int | None,
    window: int | None,
    against: str | None,
    lanes: int,
    resume: bool,
) -> LastWordResult:
    """Run it; the options by their names, see `rmt eval --help`.

    Raises:
        BadParameter: if an option does not go with the model.
        RecurrentMemoryError: if the model or the passages cannot be read, or the folder not be written.
    """
    from ..evaluation.last_word_run import evaluate_last_words
    from ..inference.documents import open_documents

    documents = open_documents(text or LAMBADA, split or "test")
    reader, tokenizer = _load(common, model, window)
    return evaluate_last_words(
        reader, tokenizer, documents, out, limit=limit, lanes=lanes, resume=resume, against=against, tell=tell
    )


def _load(common: Common, model: str | None, window: int | None) -> tuple[WordReader, Any]:
    from ..evaluation.last_word import MemoryWords, WindowWords
    from ..evaluation.perplexity_window import has_memory

    if model is None or has_memory(model):
        if window is not None:
            raise typer.BadParameter(
                "is for a plain model; this one has a memory, and segments of its own", param_hint="--window"
            )
        loaded, tokenizer = common.load_model(model)
        return MemoryWords(loaded), tokenizer
    if window is None:
        raise typer.BadParameter(
            "is missing: the model has no memory; give the tokens that it attends to", param_hint="--window"
        )
    plain, tokenizer = common.load_plain_model(model)
    return WindowWords(plain, window), tokenizer


def show_words(common: Common, result: LastWordResult, out: str) -> None:
    """Print what was found, as JSON or as a table for a person."""
    if common.as_json:
        common.show({**result.to_dict(), "out": out}, "")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Last words, 95 % Wilson intervals ({Path(out) / 'accuracy.csv'})", title_justify="left")
    for name in ("read with", "segments before", "n", "accuracy", "interval", "perplexity"):
        table.add_column(name, justify="right")
    for line in result.lines:
        interval = f"{line.low:.3f}–{line.high:.3f}"
        table.add_row(
            line.kind, line.segments_before, f"{line.n:,}", f"{line.accuracy:.3f}", interval, f"{line.perplexity:,.2f}"
        )
    Console(highlight=False).print(table)
    for gain in result.gains:
        typer.echo(
            f"{gain.of} against {gain.against}: accuracy {gain.accuracy:+.3f} ({gain.accuracy_low:+.3f} to "
            f"{gain.accuracy_high:+.3f}), {gain.nats:+.3f} nats a word ({gain.nats_low:+.3f} to {gain.nats_high:+.3f})"
        )
