"""The command `rmt`. A command is one function in a module of its own, which is imported when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from .common import reads_in_background, run_safely

# name: (module:function, what it does). One line for each command; `rmt --help` shows them in this order.
COMMANDS: dict[str, tuple[str, str]] = {
    "read": ("recurrent_memory.cli.read:read", "Read a text of any length into a memory, and keep it as a file."),
    "ask": ("recurrent_memory.cli.ask:ask", "Ask a memory a question."),
    "generate": (
        "recurrent_memory.cli.generate:generate",
        "Continue a text, from a memory or a prompt, at any length.",
    ),
    "info": ("recurrent_memory.cli.info:info", "Say what a model folder or a state file is."),
    "demo": ("recurrent_memory.cli.demo:demo", "Hide facts in a text of a million tokens, read it once, ask for them."),
    "train": ("recurrent_memory.cli.train:train", "Train a model by a recipe."),
    "eval": (
        "recurrent_memory.cli.eval:evaluate",
        "Accuracy against the length of the text, or perplexity with history.",
    ),
    "study": ("recurrent_memory.cli.study:study", "Train and evaluate every row of a table of experiments."),
}


class _Commands(typer.core.TyperGroup):
    """Finds a command's module when the command is called, so that `rmt --help` imports none."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        location, help_text = COMMANDS[cmd_name]
        module, _, function = location.partition(":")
        command = typer.Typer(add_completion=False, rich_markup_mode=None)
        command.command(cmd_name, short_help=help_text)(getattr(import_module(module), function))
        return typer.main.get_command(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])


app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def rmt(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Read texts of any length into a small memory of constant size, and ask it.

    `rmt COMMAND --help` describes a command.
    """
    if version:
        from .. import __version__

        typer.echo(f"rmt {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _run(arguments: list[str]) -> None:
    # Not `app(arguments)`, which has its own exit statuses for Ctrl-C and for a pipe that is closed.
    command = typer.main.get_command(app)
    with command.make_context("rmt", list(arguments)) as context:
        command.invoke(context)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 2 after one clear line on stderr."""
    status = run_safely(_run, arguments)
    if arguments is None and reads_in_background():
        # A thread that waits for standard input would have Python abort at its end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
