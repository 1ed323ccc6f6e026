"""Last words are scored as a plain forward of each passage scores them, with memory, without, and in a window."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from contract.backbones import DECODERS, ENCODERS, S
from contract.cases import backbone_of, model_of, text_of
from recurrent_memory.errors import ConfigError, GenerationError, InputError, OutputError
from recurrent_memory.evaluation.last_word import MemoryWords, Passage, WindowWords, split_passage
from recurrent_memory.evaluation.last_word_run import evaluate_last_words
from recurrent_memory.inference.documents import open_documents
from tiny_models import prose, tiny_model, tiny_tokenizer

gpt2 = DECODERS[0]
PASSAGES = [
    Passage(tuple(text_of(gpt2, length, seed=length)), tuple(text_of(gpt2, size, seed=100 + length)))
    for length, size in ((1, 1), (S, 2), (2 * S + 3, 1), (3 * S - 1, 3), (S + 1, 1))
]


def expected(logits: torch.Tensor, passage: Passage) -> tuple[float, bool]:
    """Of the logits of context and word, the last of which says nothing of them."""
    logits = logits[-len(passage.word) - 1 : -1].double()
    word = torch.tensor(passage.word)
    return float(logits.log_softmax(-1).gather(1, word[:, None]).sum()), bool((logits.argmax(-1) == word).all())


def assert_scores(scores: Sequence, wanted: Sequence[tuple[float, bool]]) -> None:
    for number, (score, (log_probability, is_greedy)) in enumerate(zip(scores, wanted, strict=True)):
        assert score.log_probability == pytest.approx(log_probability, abs=1e-8), number
        assert score.is_greedy is is_greedy, number


@torch.no_grad()
def test_with_memory_and_with_it_reset() -> None:
    model = model_of(gpt2)
    kept, reset = zip(*MemoryWords(model).scores(PASSAGES), strict=True)
    whole = [torch.tensor([[*passage.context, *passage.word]]) for passage in PASSAGES]
    assert_scores(kept, [expected(model(ids).logits[0], p) for ids, p in zip(whole, PASSAGES, strict=True)])
    assert [MemoryWords(model).segments_before(passage) for passage in PASSAGES] == [0, 0, 2, 2, 1]
    ends = [ids[:, start * S :] for ids, start in zip(whole, (0, 0, 2, 2, 1), strict=True)]
    assert_scores(reset, [expected(model(ids).logits[0], p) for ids, p in zip(ends, PASSAGES, strict=True)])
    assert [kept[i] == reset[i] for i in range(5)] == [True, True, False, False, False]


def test_what_has_no_memory_keeps_nothing() -> None:
    assert MemoryWords(tiny_model(num_memory_tokens=0)).state_bytes == 0
    assert WindowWords(backbone_of(gpt2), 5).state_bytes == 0


@torch.no_grad()
def test_in_a_window() -> None:
    model = backbone_of(gpt2).double()
    for window in (5, 40):
        found = [score for (score,) in WindowWords(model, window).scores(PASSAGES)]
        rows = [torch.tensor([[*p.context, *p.word][-window - 1 :]]) for p in PASSAGES]
        logits = [model(row[:, :-1]).logits[0] for row in rows]
        padded = [torch.cat([part, part[-1:]]) for part in logits]
        assert_scores(found, [expected(part, passage) for part, passage in zip(padded, PASSAGES, strict=True)])
    with pytest.raises(ConfigError, match="window=2 is shorter than a word of 3 tokens"):
        WindowWords(model, 2).scores(PASSAGES)
    with pytest.raises(ConfigError, match="window=41 must be 1 to the model's 40 positions"):
        WindowWords(model, 41)
    with pytest.raises(GenerationError, match="does not continue a text"):
        WindowWords(backbone_of(ENCODERS[0]), 8)
    with pytest.raises(GenerationError, match="does not continue a text"):
        MemoryWords(model_of(ENCODERS[0]))


def test_a_passage_is_cut_before_its_last_word() -> None:
    tokenizer = tiny_tokenizer()
    passage = split_passage("Mary went to the garden\n", tokenizer, "row 1")
    assert tokenizer.decode([*passage.context, *passage.word]) == "Mary went to the garden"
    assert tokenizer.decode(passage.word) == " garden"
    for text in ("garden", " garden", "", "\n"):
        with pytest.raises(InputError, match="row 7: has no last word after others"):
            split_passage(text, tokenizer, "row 7")


# ---------------------------------------------------------------------- in a folder


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    words = prose(120).split()
    rows = [" ".join(words[start : start + 5 + start % 40]) for start in range(0, 400, 3)]
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    return path


def test_it_goes_on_where_it_stopped_whatever_is_read_side_by_side(passages: Path, tmp_path: Path) -> None:
    reader, documents = MemoryWords(tiny_model().double()), open_documents(passages)
    whole = evaluate_last_words(reader, tiny_tokenizer(), documents, tmp_path / "whole", lanes=7)
    assert [(line.kind, line.n) for line in whole.lines if line.segments_before == "all"] == [
        ("memory", 134),
        ("reset", 134),
    ]
    (tmp_path / "whole/rows/000128.json").unlink()
    with pytest.raises(OutputError, match="holds an evaluation already; go on with --resume"):
        evaluate_last_words(reader, tiny_tokenizer(), documents, tmp_path / "whole")
    told: list[tuple[int, int]] = []
    again = evaluate_last_words(
        reader, tiny_tokenizer(), documents, tmp_path / "whole", resume=True, tell=lambda *now: told.append(now)
    )
    assert told == [(128, 134), (134, 134)]
    for one, other in zip(whole.lines, again.lines, strict=True):
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-9)
        assert (one.accuracy, one.n, one.low) == (other.accuracy, other.n, other.low)
    all_of_them = [line for line in whole.lines if line.kind == "memory"]
    assert sum(line.n for line in all_of_them[1:]) == all_of_them[0].n
    mean = sum(line.n * math.log(line.perplexity) for line in all_of_them[1:]) / all_of_them[0].n
    assert all_of_them[0].perplexity == pytest.approx(math.exp(mean))
    (gain,) = whole.gains
    assert (gain.of, gain.against) == ("memory", "reset")
    kept = json.loads((tmp_path / "whole/results.json").read_text())
    assert kept["state_bytes"] == reader.state_bytes == reader.model.initial_state(1).num_bytes
    assert gain.nats == pytest.approx(math.log(_of(whole, "reset")) - mean)
    assert gain.nats_low <= gain.nats <= gain.nats_high


def _of(result, kind: str) -> float:
    return next(line.perplexity for line in result.lines if (line.kind, line.segments_before) == (kind, "all"))


def test_two_evaluations_are_compared_only_on_the_same_passages(passages: Path, tmp_path: Path) -> None:
    reader, documents = MemoryWords(tiny_model()), open_documents(passages)
    evaluate_last_words(reader, tiny_tokenizer(), documents, tmp_path / "one", limit=20)
    same = evaluate_last_words(
        reader, tiny_tokenizer(), documents, tmp_path / "two", limit=20, against=tmp_path / "one"
    )
    by_other = {gain.against: gain for gain in same.gains}
    equal = by_other[f"memory of {tmp_path / 'one'}"]
    assert (equal.accuracy, equal.nats, equal.nats_low, equal.nats_high) == (0, 0, 0, 0)
    assert by_other[f"reset of {tmp_path / 'one'}"].nats == by_other["reset"].nats
    with pytest.raises(InputError, match="is of other passages, or other tokens"):
        evaluate_last_words(reader, tiny_tokenizer(), documents, tmp_path / "three", limit=21, against=tmp_path / "one")
    assert not (tmp_path / "three").exists()
    with pytest.raises(InputError, match="holds no finished evaluation of last words"):
        evaluate_last_words(reader, tiny_tokenizer(), documents, tmp_path / "three", against=tmp_path)
    with pytest.raises(ConfigError, match="lanes=0 must be at least 1"):
        evaluate_last_words(reader, tiny_tokenizer(), documents, tmp_path / "three", lanes=0)
