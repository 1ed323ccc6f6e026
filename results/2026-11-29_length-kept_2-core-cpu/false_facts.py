"""What an associative memory takes for a fact where there is none: python false_facts.py MODEL FOLDER-OF-TEXTS SEGMENTS."""

import sys
from pathlib import Path

import torch

from recurrent_memory.models import load_model
from recurrent_memory.segments import Segment

LARGE = 100.0


def main(name: str, folder: str, segments: int) -> None:
    """Read the texts one after the other; print each segment that moves a matrix far."""
    model, tokenizer = load_model(name, "cpu", "float32")
    text = "".join(path.read_text("utf-8") for path in sorted(Path(folder).iterdir()))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    length = model.memory_config.segment_length
    state = model.initial_state(1)
    with torch.no_grad():
        for number in range(segments):
            segment = ids[number * length : (number + 1) * length]
            after = model.step(Segment.full(segment[None]), state)[1]
            moved = torch.linalg.matrix_norm(after.tensors["A"] - state.tensors["A"])[0]
            if float(moved.max()) > LARGE:
                print(
                    f"segment {number}: {[round(float(layer)) for layer in moved]}\n{tokenizer.decode(segment)}\n",
                    flush=True,
                )
            state = after


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
