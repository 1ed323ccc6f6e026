"""What all commands share: their common options, how they print, and how they fail."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, RecurrentMemoryError
from ..files import why_not_written
from .slow_dtype import slowness

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model import RecurrentMemoryModel
    from ..state import MemoryState

FAILED = 2
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # typer carries click inside, under no public name

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16, float64; auto: float32 on a CPU, the model's own elsewhere; int8: rounded, often faster.",
    ),
]
Fast = Annotated[
    str,
    typer.Option(
        "--fast",
        help="auto: shortcuts that compute the same; off: none; compile: for long texts, after half a minute; graph: on a CUDA GPU.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; by default one for each core.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all that is random.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Where the backbone is, for a model saved without it (save_backbone: false).",
        metavar="FOLDER",
    ),
]
Model = Annotated[str | None, typer.Option("--model", help="A model folder, or a hub id.", metavar="MODEL")]


@dataclass(frozen=True, slots=True)
class Common:
    """The common options of one call, checked and in force.

    Args:
        as_json: Whether to print one JSON object.
        device: Where to compute.
        dtype: What to compute with.
        threads: CPU threads; None: torch's choice.
        seed: Of all that is random; None: another one each time.
        debug: Whether to show tracebacks.
        fast: The model's `fast`.
        backbone: Where the model's backbone is, if it was saved without it and that has moved.
    """

    as_json: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    seed: int | None = None
    debug: bool = False
    fast: str = "auto"
    backbone: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ConfigError(f"--threads {self.threads}: must be 1 to 1024")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: must be 0 or more, and less than 2^63")
        if self.threads is not None:
            os.environ["RAYON_NUM_THREADS"] = str(self.threads)  # the tokenizer's threads

    def use_threads(self) -> None:
        """Have torch use so many threads, if a number is given."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)

    def load_model(self, name: str | None) -> tuple[RecurrentMemoryModel, Any]:
        """The model and its tokenizer, with threads, seed and shortcuts set."""
        import torch

        from ..models import load_model

        self.use_threads()
        if self.seed is not None:
            torch.manual_seed(self.seed)
        model, tokenizer = load_model(name, self.device, self.dtype, backbone=self.backbone, merged=True)
        model.fast = self.fast
        self.warn_of(self.dtype, model.device.type)
        return model, tokenizer

    def load_plain_model(self, name: str) -> tuple[PreTrainedModel, Any]:
        """A model without a memory, and its tokenizer."""
        from ..evaluation.perplexity_window import load_plain_model

        if self.backbone is not None:
            raise ConfigError(f"--backbone {self.backbone}: {name} has no memory, and is whole; leave it out")
        self.use_threads()
        model, tokenizer = load_plain_model(name, self.device, self.dtype)
        self.warn_of(self.dtype, model.device.type)
        return model, tokenizer

    def warn_of(self, dtype: str, device_type: str) -> None:
        """Say on stderr if a dtype is slow there, before hours of it."""
        if (line := slowness(dtype, device_type)) is not None:
            typer.echo(line, err=True)

    def load_state(self, path: str, model: str | None) -> tuple[RecurrentMemoryModel, Any, MemoryState]:
        """A state, the model that wrote it (or the one named), and its tokenizer."""
        from ..models import SHIPPED
        from ..state import MemoryState

        recorded = MemoryState.read_metadata(path).get("model")
        if model is None and recorded not in (None, SHIPPED) and not _may_be_found(recorded):
            raise InputError(
                f"{path}: its model was in {recorded!r}, which is no longer there; say where it is: --model FOLDER"
            )
        loaded, tokenizer = self.load_model(model if model is not None else recorded)
        return loaded, tokenizer, MemoryState.load(path, model=loaded)

    def show(self, values: Mapping[str, Any], words: str) -> None:
        """Print the result, as JSON or in words."""
        typer.echo(json.dumps(dict(values), ensure_ascii=False) if self.as_json else words)


def _may_be_found(name: str) -> bool:
    return not name.startswith(os.sep) or Path(name).exists()


def read_argument(text: str) -> str:
    """What an argument says; `-` stands for standard input."""
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error}); convert it with iconv") from error


class Notes:
    """Lines for a person: at once where one watches, else only when all went well, so that an error stays alone."""

    def __init__(self) -> None:
        self._kept: list[str] = []

    def __call__(self, line: str) -> None:
        """Take a line."""
        if sys.stderr.isatty():
            typer.echo(line, err=True)
        else:
            self._kept.append(line)

    def show(self) -> None:
        """Print what was kept."""
        for line in self._kept:
            typer.echo(line, err=True)


# ---------------------------------------------------------------------- failing


def run_safely(run: Callable[[list[str]], Any], arguments: list[str] | None) -> int:
    """Run a command line: exit status 0, or 2 with one line on stderr and no traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    # Before transformers is imported: it would write to stderr what is of no use to whoever runs a command.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with suppress(AttributeError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    debug = "--debug" in given
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            status = _status_of(run, given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough of it, as `head` does. Python must not flush into the pipe once more.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        line = explain(error)
        if line is None:
            raise
        if debug:
            traceback.print_exception(error)
        with suppress(OSError):
            print(f"rmt: {line}", file=sys.stderr, flush=True)
        return FAILED
    return status


def _status_of(run: Callable[[list[str]], Any], arguments: list[str]) -> int:
    try:
        run(arguments)
    except typer.Exit as leaving:
        return leaving.exit_code
    return 0


def reads_in_background() -> bool:
    """Whether a thread that makes tokens has not ended, because it waits for more text."""
    return any(thread.daemon and thread.name == "tokenizer" for thread in threading.enumerate())


def explain(error: BaseException) -> str | None:
    """One line for a person, whatever went wrong; None for what is not an error."""
    if isinstance(error, _ClickError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "rmt"
        return f"{_one_line(error.format_message())} (see `{command} --help`)"  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(error, RecurrentMemoryError):
        return _one_line(str(error))
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _one_line(str(error)) or "interrupted"
    if _is_out_of_memory(error):
        return (
            "out of memory: take a smaller model, --dtype bfloat16 or --device cpu"
            f"{_in_brackets(error)}; what was saved before is kept"
        )
    if (reason := why_not_written(error)) is not None:
        return f"{reason.rstrip('.')}{_in_brackets(error)}; what was saved before is kept"
    if isinstance(error, OSError):
        return f"{_one_line(str(error))}; check the file, the disk and the permissions"
    if isinstance(error, Exception):
        return (
            f"an error inside rmt: {type(error).__name__}{_in_brackets(error)}; run it again with --debug and report it"
        )
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _in_brackets(error: BaseException) -> str:
    text = _one_line(str(error))
    return f" ({text[:200]}{'…' if len(text) > 200 else ''})" if text else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
