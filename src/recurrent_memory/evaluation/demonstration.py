"""The main job, shown on real text: hide facts in it, read it once, ask."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..inference.asking import ask
from ..inference.peak_memory import peak_rss_mb
from ..inference.reader import MemoryReader
from ..inference.sources import iter_text
from ..inference.tokenize_stream import stream_token_ids
from ..model import RecurrentMemoryModel
from ..state import MemoryState
from ..tasks.hiding import hide_stream
from ..tasks.library_text import library_text
from ..tasks.scoring import exact_match
from ..tasks.whereabouts import PEOPLE, PLACES, VERBS, Fact, question

_ROOM_CHARS = 400


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: what was hidden, where, and what the model said."""

    text: int
    sentence: str
    at_token: int
    question: str
    answer: str
    probability: float
    right: bool


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a demonstration showed.

    Args:
        tokens: Of one text.
        questions: Asked in all.
        accuracy: Share of right answers.
        tokens_per_s: Of reading, tokenization included, over all texts.
        peak_rss_mb: Of the whole process.
        state_bytes: Of one text's memory.
        full_attention_kv_bytes: What the keys and values of one text would take in the same backbone.
        asked: Every question.
    """

    tokens: int
    questions: int
    accuracy: float
    tokens_per_s: float
    peak_rss_mb: float
    state_bytes: int
    full_attention_kv_bytes: int
    asked: list[Asked] = field(default_factory=list[Asked])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def demonstrate(
    model: RecurrentMemoryModel,
    tokenizer: Any,
    *,
    tokens: int = 1_000_000,
    text: str | Path | None = None,
    questions: int = 4,
    seed: int = 0,
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Demonstration:
    """Hide facts about people at random places of a text, read it once, ask where each person is.

    Args:
        model: A model that was trained on who is where.
        tokenizer: Its tokenizer.
        tokens: The length of a text.
        text: A file to read instead of Python's own documentation and sources.
        questions: How many facts, and so questions. A text holds one for each of four people; more need further texts.
        seed: Draws people, places and positions.
        progress: Whether to show a progress bar.
        tell: Called with a line for a person before each part of the work.

    Raises:
        InputError: if `tokens` or `questions` is too small, or the text cannot be read.
    """
    if tokens < 64:
        raise InputError(f"tokens={tokens} is too short a text to hide a fact in; take at least 64")
    if questions < 1:
        raise InputError(f"questions={questions} must be at least 1")
    say = tell or (lambda _line: None)
    say("measuring the text …")
    num_chars, tokens = _measure(tokenizer, text, tokens)
    rng = random.Random(seed)
    hidden = [_draw(rng, min(len(PEOPLE), questions - first), num_chars) for first in range(0, questions, len(PEOPLE))]
    say(f"reading {len(hidden)} text{'s' if len(hidden) > 1 else ''} of {tokens:,} tokens, once …")
    reader = MemoryReader(model, tokenizer, progress=progress)
    started = time.perf_counter()
    states = _read(reader, [_token_ids(tokenizer, text, inserts, tokens) for inserts in hidden])
    seconds = time.perf_counter() - started
    asked: list[Asked] = []
    for index, inserts in enumerate(hidden):
        facts = [fact for _, fact in inserts]
        answers = ask(model, tokenizer, states[index].index([0] * len(facts)), [question(f.person) for f in facts])
        for (position, fact), answer in zip(inserts, answers, strict=True):
            at, right = round(position / num_chars * tokens), exact_match(answer.text, fact.place)
            asked.append(Asked(index, fact.sentence, at, question(fact.person), answer.text, answer.probability, right))
    return Demonstration(
        tokens=tokens,
        questions=len(asked),
        accuracy=sum(a.right for a in asked) / len(asked),
        tokens_per_s=round(tokens * len(hidden) / seconds, 1),
        peak_rss_mb=round(peak_rss_mb(), 1),
        state_bytes=states[0].num_bytes,
        full_attention_kv_bytes=kv_cache_bytes(model, tokens),
        asked=asked,
    )


def kv_cache_bytes(model: RecurrentMemoryModel, tokens: int) -> int:
    """Bytes of the keys and values that full attention over `tokens` would keep in the same backbone and dtype."""
    config = model.view.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * tokens * model.dtype.itemsize


def _chunks(text: str | Path | None) -> Iterator[str]:
    if text is not None:
        yield from iter_text(text)
        return
    while True:
        yield from library_text()


def _measure(tokenizer: Any, text: str | Path | None, tokens: int) -> tuple[int, int]:
    """How many characters make that many tokens, and how many tokens there are if the text is shorter."""
    chars = 0

    def counted() -> Iterator[str]:
        nonlocal chars
        for chunk in _chunks(text):
            for start in range(0, len(chunk), 16_384):
                piece = chunk[start : start + 16_384]
                chars += len(piece)
                yield piece

    seen = 0
    for ids in stream_token_ids(tokenizer, counted()):
        seen += len(ids)
        if seen >= tokens:
            return max(_ROOM_CHARS + 1, round(chars * tokens / seen)), tokens
    if seen < 64:
        raise InputError(f"{text}: has {seen} tokens, too few to hide a fact in; give a longer text")
    return chars, seen


def _draw(rng: random.Random, count: int, num_chars: int) -> list[tuple[int, Fact]]:
    facts = [Fact(person, rng.choice(PLACES), rng.choice(VERBS)) for person in rng.sample(PEOPLE, count)]
    positions = sorted(rng.randrange(max(1, num_chars - _ROOM_CHARS * count)) for _ in facts)
    return list(zip(positions, facts, strict=True))


def _token_ids(
    tokenizer: Any, text: str | Path | None, inserts: list[tuple[int, Fact]], tokens: int
) -> Iterator[list[int]]:
    chunks = hide_stream(_chunks(text), [(position, fact.sentence) for position, fact in inserts])
    left = tokens
    for ids in stream_token_ids(tokenizer, chunks):
        yield list(islice(ids, left))
        left -= len(ids)
        if left <= 0:
            return


def _read(reader: MemoryReader, texts: list[Iterator[list[int]]]) -> list[MemoryState]:
    if len(texts) == 1:
        return [reader.read(texts[0])]
    states = dict(reader.read_many(texts, lanes=16))
    return [states[index] for index in range(len(texts))]
