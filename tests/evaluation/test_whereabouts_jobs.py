"""Samples that share a reading get the state, and so the answer, that each gets alone."""

from __future__ import annotations

import random
import re

import pytest
import torch

from recurrent_memory.evaluation import whereabouts
from recurrent_memory.evaluation.composite import NoiseText
from recurrent_memory.evaluation.whereabouts import Job, run_job
from recurrent_memory.inference.asking import ask
from recurrent_memory.tasks.whereabouts import PLACES, question
from tiny_models import prose, tiny_model, tiny_tokenizer

NOISE = NoiseText(re.sub("Mary|John|Sandra|Zoë", "Nobody", prose(900)), tiny_tokenizer())


@pytest.mark.parametrize(
    "job",
    [
        Job("anywhere", 700, 8, 1),
        Job("first", 1_500, 6, 2, ((96, 6), (1_000, 3))),
        Job("four", 4_000, 2, 3),
        Job("distractors", 2_300, 3, 4),
    ],
    ids=lambda job: job.mode,
)
def test_every_row_is_what_reading_the_sample_alone_gives(job: Job) -> None:
    model, tokenizer = tiny_model(segment_length=48), tiny_tokenizer()
    rows = run_job(job, model, tokenizer, NOISE)
    samples = whereabouts._draw_samples(job, random.Random(f"{job.seed}/{job.mode}/{job.length}"), NOISE)
    assert len(rows) == sum(len(sample.asks) * len(sample.answers) for sample in samples)
    for row in rows:
        ids = torch.from_numpy(samples[row["sample"]].text.slice(0, row["length"]))[None]
        alone = ask(model, tokenizer, model.read(ids), [question(row["person"])])[0]
        assert row["answer"] == alone.text
        assert row["probability"] == pytest.approx(alone.probability, rel=1e-3, abs=2e-6)
        last = ids[:, (ids.shape[1] - 1) // 48 * 48 :]
        assert row["reset_answer"] == ask(model, tokenizer, model.read(last), [question(row["person"])])[0].text


def test_answers_are_balanced_and_positions_spread() -> None:
    samples = whereabouts._draw_samples(Job("anywhere", 3_000, 60, 0), random.Random(0), NOISE)
    answers = [next(iter(sample.answers.values())) for sample in samples]
    assert {answers.count(place) for place in PLACES} == {10}
    positions = [next(iter(sample.positions.values())) for sample in samples]
    assert min(positions) < 600
    assert max(positions) > 2_400
    assert sum(positions) / len(positions) == pytest.approx(1_500, rel=0.25)


def test_of_four_people_the_last_word_counts() -> None:
    for sample in whereabouts._draw_samples(Job("four", 5_000, 5, 9), random.Random(9), NOISE):
        assert len(sample.answers) == 4
        text = tiny_tokenizer().decode(sample.text.slice(0, 5_000).tolist())
        for person, place in sample.answers.items():
            said = max(text.rfind(f"{person} {verb} the {place}.") for verb in whereabouts.VERBS)
            for other in PLACES:
                for verb in whereabouts.VERBS:
                    assert text.rfind(f"{person} {verb} the {other}.") <= said
            assert said >= 0
