"""A tiny task: the first token of the text is asked for at its end; only the memory can carry it there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, TrainingArguments
from transformers.trainer_utils import set_seed

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.training.examples import Example

S, VOCAB, QUERY, FACTS = 4, 12, 1, (2, 3)


class CopyTask:
    """`[fact, noise …, QUERY, fact]`; only the answer is labelled."""

    def draw(self, rng: random.Random, num_segments: int) -> Example:
        fact = rng.choice(FACTS)
        ids = [fact, *rng.choices(range(4, VOCAB), k=num_segments * S - 3), QUERY, fact]
        return {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + [fact]}


class AnyLengthTask(CopyTask):
    """The same, its texts of any length, every token labelled with some probability: rows and labels are unequal."""

    def draw(self, rng: random.Random, num_segments: int) -> Example:
        ids = super().draw(rng, num_segments)["input_ids"][: rng.randint(3, num_segments * S)]
        return {"input_ids": ids, "labels": [token if rng.random() < 0.5 else -100 for token in ids]}


def copy_model(seed: int = 0, dropout: float = 0.0) -> RecurrentMemoryModel:
    set_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        hidden_dropout=dropout,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    memory = MemoryConfig(num_memory_tokens=2, segment_length=S)
    return RecurrentMemoryModel.from_backbone(GPTNeoXForCausalLM(config), memory)


def arguments(out: Path, **changes: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-2,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return TrainingArguments(**(values | changes))
