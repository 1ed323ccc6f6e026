"""The tables of GPT-2 on WikiText-2, run as they are but for their size: a GPT-2 that is tiny, a hub that is here, two steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from recurrent_memory.cli import main
from recurrent_memory.evaluation.tables import write_json
from recurrent_memory.inference import documents as documents_module
from recurrent_memory.studies.definition import load_study
from recurrent_memory.studies.plan import chains, plan
from recurrent_memory.studies.report import write_study
from recurrent_memory.studies.table import results_of, tabulate
from tiny_models import VOCAB, prose, tiny_tokenizer

STUDIES = Path(__file__).parents[2] / "studies"
POSITIONS, WIDTH = 1024, 8
SMALLER = {"max_steps": 2, "eval_every": 2, "num_eval_examples": 1, "optimizer.learning_rate": 0.01}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """What is asked of the hub: `gpt2` is a folder, WikiText is sentences, an empty line after each as in its rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recurrent_memory.training.experiment.is_tensorboard_available", lambda: False)
    for drawing in ("training.curves.draw_curves", "evaluation.perplexity_run.draw_perplexity"):  # half of the time
        monkeypatch.setattr(f"recurrent_memory.{drawing}", lambda *_, **__: None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=POSITIONS, n_embd=WIDTH, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained("gpt2")
    tiny_tokenizer().save_pretrained("gpt2")
    asked: set[tuple[Any, ...]] = set()

    def rows(_what: str, source: str, *args: Any, split: str, **_: Any) -> Iterator[dict[str, str]]:
        asked.add((source, *args, split))
        for line in prose(600 if split == "train" else 250, seed=len(split)).split(". "):
            yield from ({"text": f"{line}.\n"}, {"text": ""})

    monkeypatch.setattr(documents_module, "hub_rows", rows)
    return asked


def run(name: str, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What every row's evaluation found, after all of a study has run in this process, where the hub is."""
    study, folder = load_study(STUDIES / f"{name}.yaml", only=only), Path("out")
    changes = {"set": {**study.set, **SMALLER}, "eval": {**study.eval, "max_tokens": 2 * POSITIONS}}
    units = plan(study.model_copy(update=changes), folder, ["--threads", "1", "--device", "cpu"])
    (folder / "records").mkdir(parents=True)
    write_json({"begun": {}}, folder / "study.json")
    for unit in itertools.chain.from_iterable(chains(units)):
        for kind, arguments in (("train", unit.training), ("eval", unit.evaluation)):
            if arguments is not None:
                assert main(list(arguments)) == 0, arguments
                write_json({"elapsed_s": 1.0}, unit.record(kind))
    table = write_study(study, units, tabulate(study, units), folder, "-")
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2 : 2 + len(study.rows)]] == [
        row.name for row in study.rows
    ]
    assert len([line for line in table.splitlines() if "nats a token" in line]) == len(study.compare)
    found = {unit.row: results_of(unit) for unit in units}
    assert len({results["scored_sha256"] for results in found.values()}) == 1
    assert {results["scored_tokens"] for results in found.values()} == {2 * POSITIONS}
    return found


def test_tokens_as_1_2_4_and_6_segments(hub: set[tuple[Any, ...]]) -> None:
    found = run("lm-wikitext")
    assert hub == {("Salesforce/wikitext", "wikitext-2-raw-v1", split) for split in ("train", "validation", "test")}
    for count in (1, 2, 4, 6):
        (length,) = {int(row.split(",")[0].split(" x ")[1]) for row in found if row[0] == str(count) and "RMT" in row}
        assert POSITIONS - 32 <= count * length <= POSITIONS
        rows = {kind: found[f"{count} x {length}, {kind}"] for kind in ("zero-shot", "without memory", "RMT")}
        rows["reset"] = found[f"{count} x {length}, RMT, memory reset"]
        assert rows["zero-shot"]["window"] == length
        assert {rows[kind]["memory"]["segment_length"] for kind in rows if kind != "zero-shot"} == {length}
        assert len({results["nll"] for results in rows.values()}) == 4, "what is carried, and what is learned, counts"
        assert [results["state_bytes"] > 0 for results in rows.values()] == [False, False, True, False]
    window = found["1 x 1024, without memory"]
    assert (window["memory"]["num_memory_tokens"], window["memory"]["segment_length"]) == (0, POSITIONS)
    assert found["1 x 1024, zero-shot"]["window"] == POSITIONS


def test_memory_sizes(hub: set[tuple[Any, ...]]) -> None:
    """The smallest and the largest."""
    found = run("lm-wikitext-memory-size", ["*zero-shot", "full window", "without memory", "2 *", "64 *"])
    sizes = {row: found[row]["state_bytes"] for row in ("2 memory tokens", "64 memory tokens")}
    assert sizes["64 memory tokens"] - sizes["2 memory tokens"] == 62 * WIDTH * 4
    for row in sizes:
        assert found[row]["nll"] != found[f"{row}, memory reset"]["nll"]
    assert hub
