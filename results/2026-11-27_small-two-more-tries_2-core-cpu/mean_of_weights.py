"""A model whose weights are the mean of two others'.

python results/2026-11-27_small-two-more-tries_2-core-cpu/mean_of_weights.py FIRST SECOND OUT
"""

import sys

import torch

from recurrent_memory.models import load_model


def main() -> None:
    """Load both, write the mean beside the tokenizer of the first."""
    (model, tokenizer), (other, _) = (load_model(folder, "cpu", "float32") for folder in sys.argv[1:3])
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.copy_((mine + theirs) / 2)
    model.save_pretrained(sys.argv[3])
    tokenizer.save_pretrained(sys.argv[3])


if __name__ == "__main__":
    main()
