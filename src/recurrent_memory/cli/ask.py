"""`rmt ask`: a question to a state."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Backbone, Common, Debug, Device, Dtype, Json, Model, Seed, Threads, read_argument


def ask(
    state: Annotated[str, typer.Argument(metavar="STATE", help="A state file that `rmt read` wrote.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In words; `-`: from standard input.")],
    model: Model = None,
    backbone: Backbone = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="The longest answer, in tokens.")] = 16,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Ask a memory a question.

    The answer is what the model writes after the question, decoded over its full vocabulary; its probability is the
    product of those of its tokens. The state is not changed. Without --model, the model is the one that wrote the state.

    Example: rmt ask book.safetensors "Where is Mary?"
    """
    common = Common(as_json, device, dtype, threads, seed, debug, backbone=backbone)
    asked = read_argument(question)
    loaded, tokenizer, memory = common.load_state(state, model)
    from ..inference.asking import ask as ask_memory

    answers = ask_memory(loaded, tokenizer, memory, [asked], max_new_tokens=max_new_tokens)
    answer = answers[0]
    if len(answers) > 1:
        values = {"answers": [{"answer": a.text, "probability": a.probability} for a in answers]}
        common.show(values, "\n".join(f"{a.text or '(nothing)'}  ({a.probability:.1%})" for a in answers))
        return
    values = {"question": asked, "answer": answer.text, "probability": answer.probability}
    common.show(values, f"{answer.text or '(nothing)'}  ({answer.probability:.1%})")
