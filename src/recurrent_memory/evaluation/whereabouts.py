"""Accuracy of who-is-where against the length of the text and the place of the fact.

Samples of one job are read side by side, a segment at a time. Samples whose texts begin alike share the reading of
what they have in common: a state is a value, so a sample joins where its first fact comes, from the state of the plain
text there. That is the state that reading the sample alone gives.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..inference.asking import ask
from ..model import RecurrentMemoryModel
from ..segments import Segment
from ..state import MemoryState
from ..tasks.scoring import exact_match
from ..tasks.whereabouts import PEOPLE, PLACES, VERBS, Fact, draw_distractor, question
from .composite import Composite, Insert, NoiseText

Mode = Literal["first", "anywhere", "four", "distractors"]
_ROOM_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Job:
    """Samples that are read together.

    Args:
        mode: `first`: one fact at the start; `anywhere`: one fact, uniformly; `four`: four people, half of them move
            again; `distractors`: one fact anywhere, and a look-alike sentence every 1,024 tokens.
        length: Tokens of every text.
        samples: How many.
        seed: The samples are a function of it.
        ask_at: Shorter lengths to ask at as well, with how many of the samples (`first` only).
    """

    mode: Mode
    length: int
    samples: int
    seed: int
    ask_at: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.mode}-{self.length}-{self.samples}-{self.seed}"


@dataclass(slots=True)
class _Sample:
    text: Composite
    answers: dict[str, str]
    positions: dict[str, int]
    asks: list[int]


@torch.no_grad()
def run_job(
    job: Job, model: RecurrentMemoryModel, tokenizer: Any, noise: NoiseText, tick: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """Read and ask every sample of a job.

    Returns:
        One row a question: mode, length, sample, person, place, fact_token, answer, probability, right; and
        `reset_answer`, `reset_right`: the same with the memory reset at every segment.
    """
    rng = random.Random(f"{job.seed}/{job.mode}/{job.length}")
    samples = _draw_samples(job, rng, noise)
    length = model.memory_config.segment_length
    joins = [sample.text.first_change // length for sample in samples]
    rows: list[dict[str, Any]] = []
    plain = Composite(noise.ids, [])
    base = model.initial_state(1)
    active: list[int] = []
    state: MemoryState | None = None
    for index in range(-(-job.length // length)):
        joining = [i for i, join in enumerate(joins) if join == index]
        if joining:
            parts = ([state] if state is not None else []) + [base.index([0] * len(joining))]
            state, active = MemoryState.cat(parts), active + joining
        start = index * length
        asked = [(i, at) for i in active for at in samples[i].asks if start < at <= start + length]
        if asked and state is not None:
            rows += _ask(job, model, tokenizer, samples, active, state, asked, start)
            keep = [k for k, i in enumerate(active) if max(samples[i].asks) > start + length]
            state = state.index(keep) if keep else None
            active = [active[k] for k in keep]
        if state is not None:
            ids = np.stack([samples[i].text.slice(start, start + length) for i in active])
            state = model.step(torch.from_numpy(ids), state, return_hidden=False)[1].detach()
        if any(join > index for join in joins):
            ids = torch.from_numpy(plain.slice(start, start + length))[None]
            base = model.step(ids, base, return_hidden=False)[1].detach()
        if tick is not None:
            tick(length * max(1, len(active)))
    return rows


def _ask(
    job: Job,
    model: RecurrentMemoryModel,
    tokenizer: Any,
    samples: Sequence[_Sample],
    active: Sequence[int],
    state: MemoryState,
    asked: Sequence[tuple[int, int]],
    start: int,
) -> list[dict[str, Any]]:
    """Fold what is left of each sample up to where it is asked, ask, and ask again with a memory that saw only that."""
    pairs = [(i, at, person) for i, at in asked for person in samples[i].answers]
    where = torch.tensor([active.index(i) for i, _, _ in pairs])
    width = max(at - start for _, at in asked)
    ids, lengths = torch.zeros(len(pairs), width, dtype=torch.long), torch.tensor([at - start for _, at, _ in pairs])
    for row, (i, at, _) in enumerate(pairs):
        ids[row, : at - start] = torch.from_numpy(samples[i].text.slice(start, at))
    questions = [question(person) for _, _, person in pairs]
    answers = []
    for before in (state.index(where), model.initial_state(len(pairs))):
        after = model.step(Segment(ids, lengths), before, return_hidden=False)[1].detach()
        answers.append(ask(model, tokenizer, after, questions))
    return [
        {
            "mode": job.mode,
            "length": at,
            "sample": i,
            "person": person,
            "place": samples[i].answers[person],
            "fact_token": samples[i].positions[person],
            "answer": kept.text,
            "probability": round(kept.probability, 6),
            "right": exact_match(kept.text, samples[i].answers[person]),
            "reset_answer": reset.text,
            "reset_right": exact_match(reset.text, samples[i].answers[person]),
        }
        for (i, at, person), kept, reset in zip(pairs, *answers, strict=True)
    ]


def _draw_samples(job: Job, rng: random.Random, noise: NoiseText) -> list[_Sample]:
    balanced = [PLACES[i % len(PLACES)] for i in range(job.samples)]
    rng.shuffle(balanced)
    samples: list[_Sample] = []
    for index in range(job.samples):
        asks = [job.length] + [at for at, count in job.ask_at if index < count]
        if job.mode == "four":
            samples.append(_four(job, rng, noise, asks))
            continue
        fact = Fact(rng.choice(PEOPLE), balanced[index], rng.choice(VERBS))
        token = 0 if job.mode == "first" else rng.randrange(max(1, job.length - _ROOM_TOKENS))
        inserts = {token: [fact.sentence]}
        if job.mode == "distractors":
            for at in range(512, job.length - _ROOM_TOKENS, 1024):
                if abs(at - token) > 256:
                    inserts[at] = [draw_distractor(rng, unseen=True)]
        made = [noise.splice(at, inserts[at]) for at in sorted(inserts)]
        samples.append(_Sample(Composite(noise.ids, made), {fact.person: fact.place}, {fact.person: token}, asks))
    return samples


def _four(job: Job, rng: random.Random, noise: NoiseText, asks: list[int]) -> _Sample:
    """Four people; two of them, drawn at random, move again later."""
    facts = [Fact(person, rng.choice(PLACES), rng.choice(VERBS)) for person in PEOPLE]
    facts += [Fact(person, rng.choice(PLACES), rng.choice(VERBS)) for person in rng.sample(PEOPLE, 2)]
    spread = 4 * _ROOM_TOKENS
    while True:
        tokens = sorted(rng.sample(range(max(len(facts) * spread * 2, job.length - _ROOM_TOKENS)), len(facts)))
        if all(b - a > spread for a, b in itertools.pairwise(tokens)):
            break
    rng.shuffle(facts)
    answers: dict[str, str] = {}
    positions: dict[str, int] = {}
    inserts: list[Insert] = []
    for token, fact in zip(tokens, facts, strict=True):
        inserts.append(noise.splice(token, [fact.sentence]))
        answers[fact.person], positions[fact.person] = fact.place, token
    return _Sample(Composite(noise.ids, inserts), answers, positions, asks)
