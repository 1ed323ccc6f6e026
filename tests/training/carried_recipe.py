"""A recipe of a few steps, with everything in it that carried lanes can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recurrent_memory.training.recipe import Recipe
from tiny_models import prose

STAGE: dict[str, Any] = {
    "num_segments": 2, "segment_length": 24, "lifetime": 4, "facts": [0.5, 2], "distractors": [0.2, 0.0], "lanes": 4,
    "learning_rate": 1e-3, "max_steps": 3, "probe": 0.5, "binding": 0.1, "keep": 1.0, "first_facts": 1.0,
}  # fmt: skip
LONG_LIVED = {**STAGE, "lifetime": 200, "drop_lost": True, "final_learning_rate": 1e-4, "max_steps": 4, "sparse": 0.5}
STAGES = [STAGE, LONG_LIVED, {**STAGE, "lifetime": 1, "max_steps": 2, "lanes": 2, "unknown": 0.0}]


def recipe(folder: Path, **changes: object) -> Recipe:
    """Of `noise.txt` in the folder, into `model` there; dropout makes it use PyTorch's random numbers."""
    noise = folder / "noise.txt"
    if not noise.exists():
        noise.write_text(prose(600))
    values: dict[str, object] = {
        "name": "tiny",
        "expected": "nothing; it only has to run",
        "time": "a second",
        "cost": "nothing",
        "backbone": {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "intermediate_size": 32, "max_position_embeddings": 32, "tie_word_embeddings": True,
                     "hidden_dropout": 0.1},
        "memory": {"num_memory_tokens": 4, "recent": 2, "segment_length": 24, "carry": "sign", "slot_embeddings": True},
        "tokenizer": {"vocab_size": 500, "training_chars": 20_000},
        "noise": [str(noise)],
        "stages": STAGES,
        "out": str(folder / "model"),
        "checkpoint_every_s": 0.0,
    }  # fmt: skip
    return Recipe.model_validate({**values, **changes})


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log, without times."""
    lines = (folder / "model.run/log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("elapsed_s")} for line in lines]
