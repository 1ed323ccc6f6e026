"""How far an associative memory moves in a segment, and in 64: python drift.py MODEL FOLDER-OF-TEXTS.

Six texts, each with a fact, after 257 segments. ‖ΔA‖ / (‖z‖ √D), layer by layer, a mean over texts; and the three largest singular
values of the first layer's A.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from recurrent_memory.models import load_model
from recurrent_memory.segments import Segment
from recurrent_memory.state import MemoryState
from recurrent_memory.tasks.whereabouts import PLACES

BEFORE, THEN, APART = 257, 64, 50_000


def moved(after: MemoryState, before: MemoryState) -> Tensor:
    """A mean over texts, layer by layer."""
    far = torch.linalg.matrix_norm(after.tensors["A"] - before.tensors["A"])
    return (far / torch.linalg.vector_norm(after.tensors["z"], dim=-1) / after.tensors["A"].shape[-1] ** 0.5).mean(0)


@torch.no_grad()
def main(name: str, folder: str) -> None:
    """Read, then look at each of 64 segments."""
    model, tokenizer = load_model(name, "cpu", "float32")
    text = "".join(path.read_text("utf-8") for path in sorted(Path(folder).iterdir()))
    ids, length = torch.tensor(tokenizer(text)["input_ids"]), model.memory_config.segment_length
    rows = torch.stack([ids[row * APART :][: length * (BEFORE + THEN)] for row in range(len(PLACES))])
    for row, place in enumerate(PLACES):
        fact = torch.tensor(tokenizer(f" Mary went to the {place}.")["input_ids"])
        rows[row, 60 : 60 + len(fact)] = fact
    state = model.fold(model.read(rows[:, : length * BEFORE], memory_state=model.initial_state(len(rows))))
    begin, steps = state, list[Tensor]()
    for segment in rows[:, length * BEFORE :].split(length, 1):
        after = model.step(Segment.full(segment), state)[1]
        steps.append(moved(after, state))
        state = after
    print("in a segment", [f"{value:.2e}" for value in torch.stack(steps).mean(0).tolist()])
    print(f"in {THEN} segments", [f"{value:.2e}" for value in moved(state, begin).tolist()])
    print(
        "singular values, layer 1",
        [round(value, 3) for value in torch.linalg.svdvals(state.tensors["A"][0, 0])[:3].tolist()],
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
