"""`rmt generate`: text as it is made, from a state, a prompt or a file, of any length."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory import MemoryState, RecurrentMemoryModel
from recurrent_memory.inference import writing
from tiny_models import prose, tiny_model, tiny_tokenizer

PROMPT = prose(5)


def expected(prompt: str, tokens: int, state: MemoryState | None = None) -> str:
    model = tiny_model()
    model.generation_config.eos_token_id = None
    ids = tiny_tokenizer()(prompt, return_tensors="pt").input_ids
    made = model.generate(ids, memory_state=state, max_new_tokens=tokens, do_sample=False)
    return tiny_tokenizer().decode(made[0, ids.shape[1] :], skip_special_tokens=True)


GREEDY = ["--greedy", "--ignore-eos", "--max-new-tokens", "40"]


def test_from_a_prompt(rmt: Any, folder: Path) -> None:
    assert rmt("generate", "--model", folder, "--prompt", PROMPT, *GREEDY).out == expected(PROMPT, 40) + "\n"
    assert rmt("generate", "--model", folder, "--prompt", "-", *GREEDY, stdin=PROMPT).out == expected(PROMPT, 40) + "\n"


def test_from_a_file_longer_than_a_segment(rmt: Any, folder: Path, book: Path) -> None:
    values = rmt("generate", "--model", folder, "--prompt-file", book, *GREEDY, "--json").json
    assert values["text"] == expected(book.read_text("utf-8"), 40)
    assert values["tokens"] == 40


def test_from_a_state_and_from_a_state_with_a_prompt(rmt: Any, state: Path, book: Path) -> None:
    assert rmt("generate", "--state", state, *GREEDY).out == expected(book.read_text("utf-8"), 40) + "\n"
    read = MemoryState.load(state, model=tiny_model())
    assert rmt("generate", "--state", state, "--prompt", PROMPT, *GREEDY).out == expected(PROMPT, 40, read) + "\n"


def test_a_seed_is_drawn_and_repeats(rmt: Any, folder: Path) -> None:
    command = [
        "generate",
        "--model",
        folder,
        "--prompt",
        "Mary",
        "--temperature",
        "2",
        "--top-k",
        "50",
        "--top-p",
        "0.9",
        "--json",
    ]
    first, second = rmt(*command).json, rmt(*command).json
    assert first["seed"] != second["seed"]
    assert rmt(*command, "--seed", first["seed"]).json["text"] == first["text"]


def test_without_a_limit_until_ctrl_c(rmt: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RecurrentMemoryModel.generate
    stretches = [0]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        stretches[0] += 1
        if stretches[0] == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(RecurrentMemoryModel, "generate", interrupted)
    printed = rmt("generate", "--model", folder, "--prompt", PROMPT, *GREEDY[:2], "--max-new-tokens", 0)
    assert printed.status == 0
    assert printed.err == ""
    # What is not a whole character yet is not shown.
    assert printed.out == expected(PROMPT, 2 * writing.TOKENS_AT_A_TIME).rstrip("\ufffd") + "\n"


def test_ctrl_c_before_the_limit(rmt: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(RecurrentMemoryModel, "generate", interrupted)
    assert rmt("generate", "--model", folder, "--prompt", PROMPT).error == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "there is nothing to continue; give --state, --prompt or --prompt-file"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file are two prompts; give one of them"),
        (["--prompt", ""], "the prompt is empty; give a text to continue, or leave --prompt out"),
        (["--prompt", "a", "--max-new-tokens", "-1"], "--max-new-tokens -1: must be 0 (no limit) or more"),
        (
            ["--prompt", "a", "--max-new-tokens", "0", "--json"],
            "--json prints the text when it is complete, so it needs",
        ),
        (
            ["--prompt", "a", "--temperature", "0"],
            "temperature=0.0 must be above 0; for the most probable token, use --greedy",
        ),
        (["--prompt", "a", "--top-k", "-1"], "top_k=-1 must be at least 1"),
        (["--prompt", "a", "--greedy", "--top-p", "0.5"], "greedy takes the most probable token; leave out"),
        (["--prompt-file", "nowhere.txt"], "'nowhere.txt' does not exist"),
        (["--state", "nowhere"], "nowhere: no such file; write a state with `rmt read"),
    ],
)
def test_what_cannot_be_generated(rmt: Any, folder: Path, arguments: list[str], line: str) -> None:
    assert rmt("generate", "--model", folder, *arguments).error.startswith(line)


def test_the_state_is_not_changed(rmt: Any, state: Path) -> None:
    before = state.read_bytes()
    assert rmt("generate", "--state", state, "--max-new-tokens", 20).status == 0
    assert state.read_bytes() == before
    assert torch.is_grad_enabled()
