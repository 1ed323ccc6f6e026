"""`rmt generate`: text of any length, from a state or a prompt."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from ..errors import ConfigError, InputError
from .common import Backbone, Common, Debug, Device, Dtype, Json, Model, Seed, Threads, read_argument


def generate(
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="Continue the text of this state file.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Continue this; `-`: standard input.")
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option("--prompt-file", metavar="FILE", help="Continue this file's text.")
    ] = None,
    model: Model = None,
    backbone: Backbone = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="At most so many; 0: until the text ends, or Ctrl-C.")
    ] = 200,
    temperature: Annotated[float, typer.Option("--temperature", help="Above 1, more daring; below, less.")] = 1.0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Only among the K most probable tokens.")] = None,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Only among the most probable that make up P together.")
    ] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on where the model ends the text.")] = False,
    encoding: Annotated[str, typer.Option("--encoding", help="Of the prompt's file.")] = "utf-8",
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Continue a text, from a memory or a prompt, at any length, in constant memory.

    With a state and a prompt, the prompt continues the text that the state has read. Text is printed as it is made.

    Example: rmt generate --prompt "Mary went to the" --max-new-tokens 20
    """
    seed = seed if seed is not None else secrets.randbits(32)
    common = Common(as_json, device, dtype, threads, seed, debug, backbone=backbone)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file are two prompts; give one of them")
    if state is None and prompt is None and prompt_file is None:
        raise ConfigError("there is nothing to continue; give --state, --prompt or --prompt-file")
    if max_new_tokens < 0:
        raise ConfigError(f"--max-new-tokens {max_new_tokens}: must be 0 (no limit) or more")
    if as_json and not max_new_tokens:
        raise ConfigError("--json prints the text when it is complete, so it needs --max-new-tokens of at least 1")
    text = read_argument(prompt) if prompt is not None else None
    if text == "":
        raise InputError("the prompt is empty; give a text to continue, or leave --prompt out to continue the state's")
    from ..inference.writing import Sampling, write_text

    sampling = Sampling(greedy, temperature, top_k, top_p)
    if state is not None:
        loaded, tokenizer, memory = common.load_state(state, model)
    else:
        (loaded, tokenizer), memory = common.load_model(model), None
    source: Iterable[Any] | str | None = iter([text]) if text is not None else prompt_file
    if source is not None:
        from ..inference.reader import MemoryReader

        memory = MemoryReader(loaded, tokenizer).read(source, append_to=memory, encoding=encoding)
    assert memory is not None, "there is a state or a prompt"

    parts: list[str] = []
    started, made = time.perf_counter(), 0
    try:
        made, _ = write_text(
            loaded,
            tokenizer,
            memory,
            parts.append if as_json else _print,
            max_new_tokens=max_new_tokens or None,
            sampling=sampling,
            ignore_eos=ignore_eos,
        )
    except KeyboardInterrupt:
        if max_new_tokens:
            raise
    seconds = time.perf_counter() - started
    values = {
        "text": "".join(parts),
        "tokens": made,
        "tokens_per_s": round(made / max(seconds, 1e-9), 1),
        "seconds": round(seconds, 3),
        "seed": seed,
    }
    common.show(values, "")


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
