"""The norms of an associative memory, layer by layer, as it reads on: python growth.py MODEL FOLDER-OF-TEXTS SEGMENTS."""

import sys
from pathlib import Path

import torch

from recurrent_memory.models import load_model

AT_ONCE = 256


def main(name: str, folder: str, segments: int) -> None:
    """Read the texts one after the other, from the first again where they end; print norms at powers of two."""
    model, tokenizer = load_model(name, "cpu", "float32")
    text = "".join(path.read_text("utf-8") for path in sorted(Path(folder).iterdir()))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    step = AT_ONCE * model.memory_config.segment_length
    state = model.initial_state(1)
    for number in range(segments // AT_ONCE):
        start = number * step % (len(ids) - step)
        state = model.read(ids[None, start : start + step], memory_state=state)
        done = number + 1
        if done & (done - 1) == 0:
            norms = {key: [round(float(layer.norm())) for layer in value[0]] for key, value in state.tensors.items()}
            print(AT_ONCE * done, norms)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
