"""How soon is it learned to look up a key in an associative memory: with few keys or many, with the end of the answer or without?

    python few_keys.py --keys 16
    python few_keys.py --keys 200
    python few_keys.py --keys 16 --end

A GPT-NeoX of two layers with new weights and a vocabulary of nothing but what is needed. A text of one to four pairs, one to a segment
of four tokens, and then a question about one in a segment of its own, up to four times. Of the batches every second one has four pairs.
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from recurrent_memory import MemoryConfig, RecurrentMemoryModel

MARK, DOT, IS, END, FIRST_KEY = 0, 1, 2, 3, 4
VALUES, PAIRS, ROWS, SEGMENT = 50, 4, 64, 4


def make_model(keys: int) -> RecurrentMemoryModel:
    """A model with new weights."""
    config = GPTNeoXConfig(
        vocab_size=FIRST_KEY + keys + VALUES,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        use_parallel_residual=False,
        initializer_range=0.08,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
        pad_token_id=0,
    )
    memory = MemoryConfig(num_memory_tokens=1, segment_length=SEGMENT, kind="associative", key_width=32)
    return RecurrentMemoryModel.from_backbone(GPTNeoXForCausalLM(config), memory)


def draw(keys: int, number: int, rng: torch.Generator, *, end: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and labels, `[B, T]`, and the values that are asked for, `[B, number]`."""
    some = torch.stack([torch.randperm(keys, generator=rng)[:number] for _ in range(ROWS)]) + FIRST_KEY
    values = torch.randint(VALUES, (ROWS, number), generator=rng) + FIRST_KEY + keys
    text = torch.stack([some, torch.full_like(some, IS), values, torch.full_like(some, DOT)], -1).flatten(1)
    which = torch.randint(number, (ROWS, number), generator=rng)
    key, value = some.gather(1, which), values.gather(1, which)
    asked = torch.stack([torch.full_like(key, MARK), key, value, torch.full_like(key, END)], -1).flatten(1)
    ids = torch.cat([text, asked], 1)
    labels = torch.full_like(ids, -100)
    labels[:, text.shape[1] + 2 :: SEGMENT] = value
    if end:
        labels[:, text.shape[1] + 3 :: SEGMENT] = END
    return ids, labels, value


def main() -> None:
    """Train, and say how far it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=16)
    parser.add_argument("--end", action="store_true")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    rng, numbers = torch.Generator().manual_seed(asked.seed), random.Random(asked.seed)
    model = make_model(asked.keys)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    right, began = [0.0], time.monotonic()
    for step in range(1, asked.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, step / 100)
        number = PAIRS if numbers.random() < 0.5 else numbers.randint(1, PAIRS)
        ids, labels, value = draw(asked.keys, number, rng, end=asked.end)
        output = model(input_ids=ids, labels=labels, logits_to_keep=0)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if number == PAIRS:
            said = output.logits[:, ids.shape[1] // 2 + 1 :: SEGMENT].argmax(-1)
            right.append((said == value).float().mean().item())
        last = right[-30:]
        accuracy = sum(last) / len(last)
        if step % 50 == 0 or accuracy > 0.95:
            seconds = time.monotonic() - began
            print(f"step {step}  of four pairs the right one {accuracy:.3f}  {seconds:.0f} s", flush=True)
        if accuracy > 0.95:
            break


if __name__ == "__main__":
    main()
