"""A text's perplexity in a folder: what was asked for, the loss of every token, the tables; it goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..backbones.int8 import compute_dtype
from ..errors import OutputError
from ..inference.documents import Documents
from ..inference.peak_memory import peak_rss_mb
from ..inference.reader import evaluating
from .folder import RESULTS, SETTINGS, open_folder
from .perplexity import Scoring, TextReading
from .perplexity_plan import Choice, Plan, PlannedTokens
from .perplexity_plot import draw_perplexity
from .perplexity_store import TokenStore, read_tokens
from .perplexity_table import Line, Summary, tabulate
from .provenance import machine
from .tables import write_csv, write_json

TABLE, PLOT = "perplexity.csv", "perplexity.png"


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """What an evaluation found.

    Args:
        summary: Over all scored tokens.
        lines: The table.
        tokens: That the model read in this run.
        elapsed_s: Of this run.
        peak_rss_mb: The most memory that the process has had, in 10^6 bytes.
    """

    summary: Summary
    lines: list[Line]
    tokens: int
    elapsed_s: float
    peak_rss_mb: float


def evaluate_perplexity(
    reading: TextReading,
    tokenizer: Any,
    documents: Documents,
    choice: Choice,
    out: str | Path,
    *,
    lanes: int = 32,
    resume: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Score every token of some documents once, given all of its document before it, and keep the scores in a folder.

    Args:
        reading: How a model reads: `MemoryReading`, or `WindowReading`.
        tokenizer: Its tokenizer.
        documents: The text.
        choice: Which tokens of it.
        out: The folder: `evaluation.json` (what was asked for), `tokens/` (every loss), `perplexity.csv`, `results.json`,
            `perplexity.png`.
        lanes: Documents read side by side; the result does not depend on it.
        resume: Whether to go on with what is in the folder: finished documents are kept.
        tell: Called with the scored tokens that are done, and all of them.

    Raises:
        ConfigError: if a setting cannot be.
        InputError: if the text cannot be read, nothing is there to score, or the folder holds another evaluation.
        OutputError: if the folder holds an evaluation already and `resume` is not set, or cannot be written.

    Example:
        >>> reading = MemoryReading(model, reset=True)
        >>> evaluate_perplexity(reading, tokenizer, open_documents("books"), Choice(), "results/reset").summary.perplexity
        31.2
    """
    folder, started = Path(out), time.monotonic()
    if (folder / SETTINGS).is_file() and not resume:  # before the text is gone through
        raise OutputError(f"{folder}: holds an evaluation already; go on with --resume, or give another --out")
    tokens = PlannedTokens(documents, tokenizer, choice)
    plan = tokens.plan
    store, read = TokenStore(folder, plan), 0
    scoring = Scoring(reading, tokens.feeds(lambda document: not store.has(document)), lanes)
    settings = _settings(reading, documents, choice, plan)
    with open_folder(folder, settings, resume=resume):
        if not (folder / RESULTS).is_file():
            with evaluating(reading.model):
                read = _score(scoring, plan, store, tell)
            store.finish(reading.coordinates)
        summary, lines = tabulate(read_tokens(folder), plan, reading.width)
        draw_perplexity(lines, folder / PLOT, title=f"{settings['reading']} in {documents.name}")
        write_csv(Line, lines, folder / TABLE)
        result = PerplexityResult(summary, lines, read, round(time.monotonic() - started, 1), round(peak_rss_mb(), 1))
        if not (folder / RESULTS).is_file():
            write_json(_results(settings, result, reading.state_bytes), folder / RESULTS)
        store.forget_rows()
        return result


def _settings(reading: TextReading, documents: Documents, choice: Choice, plan: Plan) -> dict[str, Any]:
    values = {
        "task": "lm",
        **reading.settings,
        "dtype": compute_dtype(reading.model),
        "text": documents.name,
        "sources": dict(documents.identity),
        **asdict(choice),
        "scored_sha256": plan.scored_sha256,
    }
    return json.loads(json.dumps(values))


def _score(scoring: Scoring, plan: Plan, store: TokenStore, tell: Callable[[int, int], None] | None) -> int:
    """Score the documents that are not finished; the tokens that the model read."""
    done = sum(document.num_scored for document in plan.documents if store.has(document))
    read = 0
    for scored in scoring.run():
        store.add(scored)
        read += scored.num_read
        done += len(scored.nll)
        if tell is not None:
            tell(done, plan.num_scored)
    return read


def _results(settings: dict[str, Any], result: PerplexityResult, state_bytes: int) -> dict[str, Any]:
    return {
        **settings,
        **result.summary.to_dict(),
        "lines": [line.to_dict() for line in result.lines],
        "tokens_read": result.tokens,
        "state_bytes": state_bytes,
        "elapsed_s": result.elapsed_s,
        "peak_rss_mb": result.peak_rss_mb,
        **machine(),
    }
