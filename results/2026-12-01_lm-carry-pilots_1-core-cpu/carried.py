"""How far a gate is open, and how large what it carries is: python carried.py MODEL TEXTS.jsonl BACKBONE.

MODEL: a folder of a model with carry gate or gated-norm, BACKBONE: the one that it was saved without. Of the first text, after 512,
1,024 and 1,536 tokens: norms of what is written less the first memory, and of its differences, means over memory tokens.
"""

import json
import sys

import torch
from transformers import AutoTokenizer

from recurrent_memory import RecurrentMemoryModel

folder, texts, backbone = sys.argv[1:]
model = RecurrentMemoryModel.from_pretrained(folder, backbone=backbone).eval()
with open(texts, encoding="utf-8") as lines:
    ids = AutoTokenizer.from_pretrained(backbone)(json.loads(next(lines))["text"], return_tensors="pt").input_ids
with torch.no_grad():
    written = slice(0, model.memory_config.num_written)
    first, gate = model.memory.initial_memory[written], model.memory.carry.gate
    added = [model.read(ids[:, : n + 1]).tensors["memory"][0, written] - first for n in (512, 1024, 1536)]
    size = [part.norm(dim=-1).mean().item() for part in (first, *added, added[0] - added[1], added[1] - added[2])]
    spread = (added[0] / gate).std().item()
print(f"gate: standard deviation {gate.std().item():.4f}, at most {gate.abs().max().item():.4f}")
print(
    f"first memory {size[0]:.2f}, added {size[1]:.2f} {size[2]:.2f} {size[3]:.2f}, differences {size[4]:.2f} {size[5]:.2f}"
)
print(f"what the gate multiplies: standard deviation {spread:.2f}")
