"""`rmt eval --task lm`: the perplexity of a text, with memory, with its memory reset, or of a plain model in a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .common import Common

if TYPE_CHECKING:
    from ..evaluation.perplexity import TextReading
    from ..evaluation.perplexity_compare import Comparison
    from ..evaluation.perplexity_run import PerplexityResult

_HEADINGS = {
    "history": "segments of history",
    "position_with_history": "position in the segment, after the first one",
}


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """The options of `--task lm`, by their names; see `rmt eval --help`."""

    text: str | None
    split: str | None
    join: bool
    max_tokens: int | None
    max_document_tokens: int | None
    limit_documents: int | None
    bos: bool
    reset: bool
    window: int | None
    stride: int | None
    against: str | None
    lanes: int
    resume: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """What was found.

    Args:
        result: The evaluation.
        comparison: With another one, if that was asked for.
        out: Its folder.
    """

    result: PerplexityResult
    comparison: Comparison | None
    out: str

    def print(self, common: Common) -> None:
        """As JSON, or as tables for a person. Documents may be many: they are in FOLDER only."""
        result, compared = self.result, self.comparison
        if common.as_json:
            values = {
                **result.summary.to_dict(),
                "lines": [line.to_dict() for line in result.lines if line.by != "document"],
                "comparison": None if compared is None else compared.to_dict(),
                "tokens_read": result.tokens,
                "elapsed_s": result.elapsed_s,
                "peak_rss_mb": result.peak_rss_mb,
                "out": self.out,
            }
            common.show(values, "")
            return
        self._print_tables()
        summary = result.summary
        typer.echo(
            f"Perplexity {_number(summary.perplexity)} a token, {_number(summary.word_perplexity)} a word, "
            f"{_number(summary.bits_per_byte)} bits a byte: {summary.scored_tokens:,} tokens scored in {summary.documents:,} "
            f"documents, {summary.unscored_tokens:,} not ({Path(self.out) / 'perplexity.csv'})"
        )
        if compared is not None:
            interval = "" if compared.low is None else f" ({compared.ratio_low:.4f}–{compared.ratio_high:.4f})"
            typer.echo(f"Its perplexity is {compared.ratio:.4f}{interval} times the other's, on the same tokens")
        typer.echo(
            f"{result.tokens:,} tokens read in {result.elapsed_s:,.0f} s, at most {result.peak_rss_mb:,.0f} MB of memory"
        )

    def _print_tables(self) -> None:
        from rich.console import Console
        from rich.table import Table

        for by, heading in _HEADINGS.items():
            table = Table(title=f"By {heading}", title_justify="left")
            for name in ("group", "n", "loss", "perplexity"):
                table.add_column(name, justify="right")
            for line in self.result.lines:
                if line.by == by:
                    table.add_row(line.group, f"{line.n:,}", f"{line.nll:.4f}", _number(line.perplexity))
            if table.row_count:
                Console(highlight=False).print(table)


def evaluate_text(
    common: Common, model: str | None, what: TextEvaluation, out: str, tell: Callable[[int, int], None]
) -> Shown:
    """Run `rmt eval --task lm`.

    Raises:
        BadParameter: if an option is missing, or does not go with another or with the model.
        RecurrentMemoryError: if the model or the text cannot be read, or the folder not be written.
    """
    if what.text is None:
        raise typer.BadParameter("it is missing; name a file, a folder or a hub id", param_hint="--text")
    if what.stride is not None and what.window is None:
        raise typer.BadParameter("goes with --window", param_hint="--stride")
    if what.reset and what.window is not None:
        raise typer.BadParameter("a window has no memory to reset; leave one of them out", param_hint="--reset")
    from ..evaluation.perplexity_compare import compare, scored_sha256
    from ..evaluation.perplexity_plan import Choice
    from ..evaluation.perplexity_run import evaluate_perplexity
    from ..inference.documents import open_documents

    if what.against is not None:
        scored_sha256(what.against)  # or an error now, not in the end
    choice = Choice(what.max_tokens, what.limit_documents, what.bos, what.max_document_tokens)
    documents = open_documents(what.text, what.split or "test")
    reading, tokenizer = _load(common, model, what)
    result = evaluate_perplexity(
        reading,
        tokenizer,
        documents.joined() if what.join else documents,
        choice,
        out,
        lanes=what.lanes,
        resume=what.resume,
        tell=tell,
    )
    return Shown(result, compare(what.against, out) if what.against is not None else None, out)


def _load(common: Common, model: str | None, what: TextEvaluation) -> tuple[TextReading, Any]:
    from ..evaluation.perplexity import MemoryReading
    from ..evaluation.perplexity_window import WindowReading, has_memory

    if model is None or has_memory(model):
        loaded, tokenizer = common.load_model(model)
        if what.window is not None:
            raise typer.BadParameter(
                "is for a plain model; this one has a memory, and segments of its own", param_hint="--window"
            )
        return MemoryReading(loaded, reset=what.reset), tokenizer
    if what.window is None or what.reset:
        raise typer.BadParameter(
            "is missing: the model has no memory; give the tokens that it attends to", param_hint="--window"
        )
    plain, tokenizer = common.load_plain_model(model)
    return WindowReading(plain, what.window, what.stride), tokenizer


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:,.3f}"
