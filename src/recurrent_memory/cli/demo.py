"""`rmt demo`: the main job on real text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Common, Debug, Device, Dtype, Json, Model, Notes, Threads

if TYPE_CHECKING:
    from ..evaluation.demonstration import Demonstration


def demo(
    tokens: Annotated[int, typer.Option("--tokens", help="The length of a text, in tokens.")] = 1_000_000,
    text: Annotated[
        str | None, typer.Option("--text", help="A file or folder to read instead of Python's own library.")
    ] = None,
    questions: Annotated[int, typer.Option("--questions", help="Facts to hide; one text holds four.")] = 4,
    chart: Annotated[str | None, typer.Option("--chart", help="Draw what happened, as a PNG file.")] = None,
    model: Model = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws people, places and positions.")] = 0,
    debug: Debug = False,
) -> None:
    """Hide facts about people at random places of a long text, read it once, and ask where each person is.

    The text is Python's language reference and the sources of its standard library, as much as the length needs, or
    any file of yours. All that is kept of it is a memory of a few kilobytes.

    Example: rmt demo --tokens 200000 --text book.txt
    """
    common = Common(as_json, device, dtype, threads, seed, debug)
    loaded, tokenizer = common.load_model(model)
    from ..evaluation.demonstration import demonstrate

    notes = Notes()
    shown = demonstrate(
        loaded,
        tokenizer,
        tokens=tokens,
        text=text,
        questions=questions,
        seed=seed,
        progress=sys.stderr.isatty() or as_json,
        tell=notes,
    )
    if chart is not None:
        from ..evaluation.demonstration_chart import draw

        draw(shown, chart)
    if as_json:
        common.show(shown.to_dict(), "")
    else:
        _print_table(shown)
        if chart is not None:
            typer.echo(f"chart: {chart}")


def _print_table(shown: Demonstration) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"Hidden in a text of {shown.tokens:,} tokens, read once", title_justify="left")
    many = len({asked.text for asked in shown.asked}) > 1
    for name in (["text"] if many else []) + ["at token", "hidden", "asked", "answered", "sure", ""]:
        table.add_column(name, justify="right" if name in ("text", "at token", "sure") else "left")
    for asked in shown.asked:
        row = [
            f"{asked.at_token:,}",
            asked.sentence,
            asked.question,
            asked.answer or "(nothing)",
            f"{asked.probability:.0%}",
        ]
        table.add_row(*([str(asked.text + 1)] if many else []), *row, "✓" if asked.right else "✗")
    console.print(table)
    right = sum(asked.right for asked in shown.asked)
    console.print(
        f"right: {right} of {shown.questions}   reading: {shown.tokens_per_s:,.0f} tokens/s   "
        f"peak memory: {shown.peak_rss_mb:,.0f} MB"
    )
    ratio = shown.full_attention_kv_bytes / shown.state_bytes
    console.print(
        f"kept of the text: {shown.state_bytes:,} bytes; full attention in the same backbone would keep "
        f"{shown.full_attention_kv_bytes:,} bytes of keys and values ({ratio:,.0f} times as much)"
    )
