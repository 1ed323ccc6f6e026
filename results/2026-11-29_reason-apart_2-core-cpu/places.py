"""Each answer of evaluations of `reason`, with how far its two facts are apart: python places.py MODEL NOISE FOLDER ….

Samples are drawn again, as `rmt eval --task reason --lengths 512,4096,32768 --samples 50 --lanes 25 --seed 7` drew them.
"""

import json
import sys
from pathlib import Path

from recurrent_memory.evaluation.length import GroupReading, plan_groups
from recurrent_memory.evaluation.length_run import LengthEvaluation
from recurrent_memory.models import load_model
from recurrent_memory.tasks.noise_source import open_noise
from recurrent_memory.tasks.registry import load_task

place, noise, *folders = sys.argv[1:]
model, tokenizer = load_model(place)
task, lengths = load_task("reason"), (512, 4096, 32768)
boundary = LengthEvaluation("reason", lengths, (50,)).boundary
for group in plan_groups(task, lengths, (50, 50, 50), 25):
    reading = GroupReading(
        group, model, tokenizer, task, open_noise(noise), seed=7, boundary=boundary, score=lambda *_: False
    )
    for start in range(0, group.lengths[0], 1024):
        reading._ids(start, min(group.lengths[0], start + 1024))  # places the facts
    for folder in folders:
        rows = json.loads((Path(folder) / "rows" / f"{group.name}.json").read_text())
        for text, sample, row in zip(reading._texts, reading._samples, rows, strict=True):
            first, second = (span[0] for span in text.fact_spans)
            print(
                json.dumps(
                    {
                        "checkpoint": Path(folder).name,
                        "tokens": row["length"],
                        "between_facts": second - first,
                        "after_the_later": row["length"] - second,
                        "asked_of_fact": sample.supporting,
                        "question": row["question"],
                        "right_answer": row["target"],
                        "answer": row["answer"],
                        "right": row["right"],
                    }
                )
            )
