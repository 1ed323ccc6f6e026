"""`rmt eval`: how often a model's memory holds what a long text said; or how well it predicts a text."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from ..errors import ConfigError
from .common import Backbone, Common, Debug, Device, Dtype, Fast, Json, Threads
from .read import stoppable

if TYPE_CHECKING:
    from ..evaluation.length_run import LengthResult


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model folder, or a hub id; the shipped model if left out."),
    ] = None,
    backbone: Backbone = None,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="memorize, detect, reason, qa1 … qa20, or one of a package; lm: perplexity; lambada: last words.",
        ),
    ] = "detect",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the task, such as source=FOLDER.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="Tokens of the texts, such as 512,4k,1M.", show_default=False)
    ] = None,
    segments: Annotated[
        str | None, typer.Option("--segments", help="The same in segments of the model.", show_default=False)
    ] = None,
    samples: Annotated[
        str, typer.Option("--samples", help="Texts for each length: one number, or one for each.")
    ] = "100",
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Where answers, table and plot go.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in FOLDER.")] = False,
    noise: Annotated[
        str | None,
        typer.Option("--noise", help="A file, folder or hub id to hide facts in; Python's own library if left out."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Texts of BABILong's sets instead: RMT-team/babilong, or a copy; --lengths names the sets.",
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option("--scoring", help="exact, or babilong; that of the dataset, else exact.", show_default=False),
    ] = None,
    boundary: Annotated[
        str, typer.Option("--boundary", help="Where facts stand: after a sentence, or a word.")
    ] = "sentence",
    lanes: Annotated[int, typer.Option("--lanes", help="Texts read side by side.")] = 32,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", metavar="SOURCE", help="lm, lambada: a file, a folder, .jsonl, or a hub id (ID:CONFIGURATION)."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="lm, lambada: of a hub id; test if left out.", show_default=False)
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="lm: all documents are one text.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="lm: tokens to score, over documents in order.")
    ] = None,
    max_document_tokens: Annotated[
        int | None, typer.Option("--max-document-tokens", help="lm: tokens to score of each document, from its start.")
    ] = None,
    limit_documents: Annotated[
        int | None, typer.Option("--limit-documents", help="lm, lambada: the first ones only.")
    ] = None,
    bos: Annotated[
        bool, typer.Option("--bos", help="lm: put the beginning-of-text token before every document.")
    ] = False,
    reset: Annotated[bool, typer.Option("--reset", help="lm: reset the memory at every segment.")] = False,
    window: Annotated[
        int | None,
        typer.Option("--window", help="lm, lambada: of a plain model without memory, its full attention, in tokens."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="lm: tokens by which the window moves; all of it if left out.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="FOLDER", help="lm, lambada: compare with the evaluation in FOLDER."),
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fast: Fast = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws samples, places and noise.")] = 0,
    debug: Debug = False,
) -> None:
    """Hide the facts of a task in texts of many lengths, read them, ask: accuracy against length.

    Beside each answer stands that of a memory that was reset before the last segment of the text. FOLDER gets a table
    (accuracy.csv), a plot (accuracy.png), every answer (rows/), and all in one (results.json). What was done is kept:
    after an interruption the same command with --resume goes on.

    --task lm is perplexity instead: every token of SOURCE is scored once, given all of its document before it. --task
    lambada is the last word of every passage of SOURCE (LAMBADA on the hub, if it is left out).

    Example: rmt eval models/small --task detect --lengths 1k,16k,256k --samples 50 --out results/detect
    """
    common = Common(as_json, device, dtype, threads, seed, debug, fast, backbone)
    if out is None:
        raise typer.BadParameter("it is missing; name the folder to write", param_hint="--out")
    of_lm = {
        "--text": text,
        "--split": split,
        "--join": join,
        "--max-tokens": max_tokens,
        "--max-document-tokens": max_document_tokens,
        "--limit-documents": limit_documents,
        "--bos": bos,
        "--reset": reset,
        "--window": window,
        "--stride": stride,
        "--against": against,
    }
    of_tasks = {
        "--option": option,
        "--lengths": lengths,
        "--segments": segments,
        "--noise": noise,
        "--dataset": dataset,
        "--scoring": scoring,
    }
    of_lambada = {"--text", "--split", "--limit-documents", "--window", "--against"}
    if window is not None and fast != "auto":
        raise typer.BadParameter("is not for a plain model in a window", param_hint="--fast")
    for name, value in {**of_lm, **of_tasks}.items():
        takes = [name in of_lm, name in of_lambada, name in of_tasks][{"lm": 0, "lambada": 1}.get(task, 2)]
        if not takes and value not in (None, False, []):
            raise typer.BadParameter(f"is not for --task {task}", param_hint=name)
    if task == "lm":
        from .eval_lm import TextEvaluation, evaluate_text

        what = TextEvaluation(
            text,
            split,
            join,
            max_tokens,
            max_document_tokens,
            limit_documents,
            bos,
            reset,
            window,
            stride,
            against,
            lanes,
            resume,
        )
        with stoppable(), _bar() as tell:
            shown = evaluate_text(common, model, what, out, tell)
        shown.print(common)
        return
    if task == "lambada":
        from .eval_words import evaluate_words, show_words

        with stoppable(), _bar("passages") as tell:
            words = evaluate_words(
                common,
                model,
                out,
                tell,
                text=text,
                split=split,
                limit=limit_documents,
                window=window,
                against=against,
                lanes=lanes,
                resume=resume,
            )
        show_words(common, words, out)
        return
    from ..evaluation.dataset import evaluate_dataset
    from ..evaluation.length_run import LengthEvaluation, evaluate_lengths, parse_lengths, samples_for
    from ..tasks.noise_source import open_noise
    from ..tasks.registry import load_task

    if (lengths is None) == (segments is None):
        raise typer.BadParameter("give either of them", param_hint="--lengths / --segments")
    if scoring not in (None, "exact", "babilong"):
        raise typer.BadParameter(f"{scoring!r} is neither exact nor babilong", param_hint="--scoring")
    if dataset is not None:
        if lengths is None or option or noise is not None:
            raise typer.BadParameter(
                "takes --lengths, such as 4k,1M; no --segments, --option, --noise", param_hint="--dataset"
            )
        names = [name.strip() for name in lengths.split(",")]
        with stoppable(), _bar() as tell:
            loaded, tokenizer = common.load_model(model)
            result = evaluate_dataset(
                loaded,
                tokenizer,
                task,
                dataset,
                names,
                samples_for(names, parse_lengths(samples)),
                out,
                scoring="exact" if scoring == "exact" else "babilong",
                lanes=lanes,
                resume=resume,
                tell=tell,
            )
        _show(common, result, out)
        return
    options = options_of(option or [])
    loaded_task = load_task(task, **options)
    if loaded_task.placement == "alone" and noise is not None:
        raise typer.BadParameter(f"the text of {task!r} is its facts alone; leave it out", param_hint="--noise")
    numbers = parse_lengths(lengths or segments or "")
    counts = samples_for(numbers, parse_lengths(samples))
    with stoppable():
        loaded, tokenizer = common.load_model(model)
        if segments is not None:
            numbers = tuple(number * loaded.memory_config.segment_length for number in numbers)
        rule = "babilong" if scoring == "babilong" else "exact"
        plan = LengthEvaluation(task, numbers, counts, seed, lanes, boundary, rule, options)  # pyright: ignore[reportArgumentType]
        with _bar() as tell:
            result = evaluate_lengths(
                loaded, tokenizer, loaded_task, open_noise(noise), plan, out, resume=resume, tell=tell
            )
    _show(common, result, out)


def options_of(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs, the values as YAML reads them.

    Raises:
        ConfigError: if one is not of that form.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--option {pair!r} is not key=value; give such as source=FOLDER")
        options[key] = yaml.safe_load(value)
    return options


@contextmanager
def _bar(unit: str = "tokens") -> Generator[Any]:
    """Told what is done, and all; of tokens, those of texts: what is shared counts for each text."""
    from ..inference.reader import showing

    with showing(True, unit) as progress:
        yield lambda done, total: progress.update(done, done / total)  # pyright: ignore[reportUnknownLambdaType]


def _show(common: Common, result: LengthResult, out: str) -> None:
    lines = [line.to_dict() for line in result.lines]
    values = {
        "lines": lines,
        "tokens": result.tokens,
        "elapsed_s": result.elapsed_s,
        "peak_rss_mb": result.peak_rss_mb,
        "out": out,
    }
    if common.as_json:
        common.show(values, "")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Accuracy against length, 95 % Wilson intervals ({Path(out) / 'accuracy.csv'})", title_justify="left"
    )
    for name in ("tokens", "segments", "n", "accuracy", "interval", "memory reset", "interval"):
        table.add_column(name, justify="right")
    for line in result.lines:
        if line.by == "length":
            table.add_row(
                f"{line.length:,}",
                f"{line.segments:,}",
                str(line.n),
                f"{line.accuracy:.3f}",
                f"{line.low:.3f}–{line.high:.3f}",
                f"{line.reset_accuracy:.3f}",
                f"{line.reset_low:.3f}–{line.reset_high:.3f}",
            )
    Console(highlight=False).print(table)
    typer.echo(
        f"{result.tokens:,} tokens read in {result.elapsed_s:,.0f} s, at most {result.peak_rss_mb:,.0f} MB of memory"
    )
