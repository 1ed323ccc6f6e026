"""`rmt read`: a text of any length, into a state file."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..errors import InputError
from .common import Backbone, Common, Debug, Device, Dtype, Fast, Json, Model, Notes, Seed, Threads


def read(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE|-", help="Text files, .gz files, folders; `-`: standard input.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="STATE", help="The state file to write.")] = None,
    model: Model = None,
    backbone: Backbone = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a reading that was interrupted.")] = False,
    append_to: Annotated[
        str | None,
        typer.Option(
            "--append-to", metavar="STATE", help="Read on from this state; without --out, it is the one written."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite --out, and give up an interrupted reading of it.")
    ] = False,
    encoding: Annotated[
        str, typer.Option("--encoding", help="Of the files, such as utf-16, latin-1, cp1252.")
    ] = "utf-8",
    save_every: Annotated[
        float, typer.Option("--save-every", metavar="SECONDS", help="How often to save on the way.")
    ] = 60.0,
    schedule: Annotated[
        str,
        typer.Option("--schedule", help="sequential; diagonal, for memories in every layer; auto: the faster one."),
    ] = "auto",
    fast: Fast = "auto",
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Read a text of any length into a memory, and keep it as a file.

    RAM does not grow with the text. On the way the memory is saved in STATE.partial: after an interruption, the same
    command with --resume goes on from there, and ends with the same memory. The model is the one that comes with the
    package, or, with --append-to, the one that wrote that state.

    Example: rmt read book.txt --out book.safetensors
    """
    from ..models import recorded_name

    common = Common(as_json, device, dtype, threads, seed, debug, fast, backbone)
    out = out if out is not None else append_to
    if out is None:
        raise typer.BadParameter("it is missing; name the state file to write", param_hint="--out")
    if not files:
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("no FILE is given; name text files or folders, or pipe a text in")
        files = ["-"]
    with stoppable():
        if append_to is not None:
            from ..state import MemoryState

            recorded = MemoryState.read_metadata(append_to).get("model")
            model = model if model is not None else recorded
        loaded, tokenizer = common.load_model(model)
        from ..inference.reader import MemoryReader

        notes = Notes()
        reader = MemoryReader(
            loaded, tokenizer, progress=True, save_every_s=save_every, schedule=schedule, notify=notes
        )
        reader.read(
            files if files != ["-"] else "-",
            out=out,
            resume=resume,
            append_to=append_to,
            force=force,
            encoding=encoding,
            metadata={"model": recorded_name(model)},
        )
    notes.show()
    show_stats(common, reader.stats, out, recorded_name(model))


def show_stats(common: Common, stats: Any, out: str, model: str) -> None:
    """Print what a reading did."""
    values = {
        "tokens": stats.tokens,
        "segments": stats.segments,
        "tokens_per_s": round(stats.tokens_per_s, 1),
        "peak_rss_mb": round(stats.peak_rss_mb, 1),
        "state_bytes": stats.state_bytes,
        "seconds": round(stats.seconds, 3),
        "state": out,
        "model": model,
    }
    words = (
        f"Read {stats.tokens:,} tokens ({stats.segments:,} segments) in {stats.seconds:,.1f} s: "
        f"{stats.tokens_per_s:,.0f} tokens/s, at most {stats.peak_rss_mb:,.0f} MB of memory.\n"
        f"What is remembered of it: {stats.state_bytes:,} bytes, in {out}\n"
        f'Ask it: rmt ask {out} "…"'
    )
    common.show(values, words)


@contextmanager
def stoppable() -> Generator[None]:
    """`kill` ends a reading as Ctrl-C does: it is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
