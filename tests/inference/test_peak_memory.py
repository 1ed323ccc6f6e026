"""However long the text, the process that reads it takes the same memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.inference.peak_memory import peak_rss_mb
from recurrent_memory.models import shipped_model_path
from recurrent_memory.tasks.library_text import take_text
from tiny_models import prose, tiny_tokenizer

SHORT, LONG = 50_000, 400_000
CHARS_PER_TOKEN = 4  # more than there are, so that the texts are long enough

# A process for each, so that none has another's leftovers; forked, so that the imports are made once. Those of plots, too: else
# they are what takes most, and hide what the text takes. Losses are written in blocks that fill at both lengths.
SCRIPT = """
import os, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot
import recurrent_memory.evaluation.demonstration
from recurrent_memory.cli import main
from recurrent_memory.evaluation import perplexity_run, perplexity_store
perplexity_store.TOKENS_PER_FILE = 2**14
perplexity_store.TokenStore.__init__.__defaults__ = (2**14,)
for arguments in sys.argv[1:]:
    child = os.fork()
    if not child:
        status = main(arguments.split())
        sys.stdout.flush()
        os._exit(status)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tokenizer that is shipped, and a model of long segments that takes hardly any time to read them."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_model_path())
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=600, n_embd=16, n_layer=1, n_head=1)
    memory = MemoryConfig(num_memory_tokens=2, segment_length=512)
    model = RecurrentMemoryModel.from_backbone(GPT2LMHeadModel(config).eval(), memory)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not know its own peak from its parent's")
@pytest.mark.parametrize("command", ["read", "demo"])
def test_eight_times_the_text_takes_at_most_3_percent_more(folder: Path, command: str) -> None:
    lines: list[str] = []
    for tokens in (SHORT, LONG):
        what = f"--tokens {tokens}"
        if command == "read":
            book = folder / f"{tokens}.txt"
            book.write_text(take_text(CHARS_PER_TOKEN * tokens), "utf-8")
            what = f"{book} --out {folder / str(tokens)}"
        lines.append(f"{command} {what} --model {folder / 'model'} --threads 1 --json")
    result = subprocess.run([sys.executable, "-c", SCRIPT, *lines], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    short, long = map(json.loads, result.stdout.splitlines())
    assert short["tokens"] >= SHORT
    assert long["tokens"] >= LONG
    assert long["peak_rss_mb"] <= 1.03 * short["peak_rss_mb"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not know its own peak from its parent's")
@pytest.mark.parametrize("task", ["detect", "lm"])
def test_an_evaluation_of_ten_times_the_text_takes_4_mb_more_at_most(tmp_path: Path, task: str) -> None:
    """The text is one that begins again and again, so that a tokenizer's cache of words is as full in the short one."""
    tokenizer, passage = tiny_tokenizer(), prose(2_000)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=600, n_embd=16, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    memory = MemoryConfig(num_memory_tokens=2, segment_length=512)
    RecurrentMemoryModel.from_backbone(GPT2LMHeadModel(config).eval(), memory).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "noise.txt").write_text(passage, "utf-8")
    lines: list[str] = []
    for tokens in (40_000, 400_000):
        text = tmp_path / f"{tokens}.txt"
        text.write_text(f"{passage} " * (tokens // len(tokenizer(passage)["input_ids"]) + 1), "utf-8")
        what = f"lm --text {text}"
        if task == "detect":
            what = f"detect --lengths {tokens} --samples 2 --noise {tmp_path / 'noise.txt'}"
        out = tmp_path / f"out-{tokens}"
        lines.append(f"eval {tmp_path / 'model'} --task {what} --out {out} --threads 1 --json")
    result = subprocess.run([sys.executable, "-c", SCRIPT, *lines], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    short, long = map(json.loads, result.stdout.splitlines())
    read = "tokens_read" if task == "lm" else "tokens"
    assert long[read] > 6 * short[read] > 6 * 40_000
    assert long["peak_rss_mb"] <= short["peak_rss_mb"] + 4


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = peak_rss_mb()
    unused = int(before * 1e6) - psutil.Process().memory_info().rss
    held = bytearray(unused + 50_000_000)
    peak = peak_rss_mb()
    assert peak >= before + 45
    del held
    assert peak_rss_mb() >= peak - 2  # Linux counts the pages of each thread in batches
