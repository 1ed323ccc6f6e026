"""Which layer's memory breaks the answers: python swap.py MODEL FOLDER-OF-TEXTS SEGMENTS.

Six texts, each with a fact in its first segment, are read as far as SEGMENTS; the model is asked at powers of two. In the end it is
asked with one layer's memory as it was after 256 segments, then with all layers' as they were but for one.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from recurrent_memory.models import load_model
from recurrent_memory.state import MemoryState
from recurrent_memory.tasks.whereabouts import PLACES

AT_ONCE, WORDS, APART = 256, 3, 40_000


class Asked:
    """A model and the question that it is asked.

    Args:
        name: The model's folder.
    """

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = load_model(name, "cpu", "float32")
        self.question = torch.tensor(self.tokenizer(" Where is Mary? ")["input_ids"])

    @torch.no_grad()
    def answers(self, state: MemoryState) -> list[str]:
        """The likeliest words of each text, one after the other."""
        rows = len(state.tokens_read)
        ids = self.question.expand(rows, -1)
        for _ in range(WORDS):
            likeliest = self.model(input_ids=ids, memory_state=state).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, likeliest[:, None]], 1)
        return [self.tokenizer.decode(row[len(self.question) :]) for row in ids]


def report(what: str, asked: Asked, state: MemoryState) -> None:
    """How many of the texts have the right word first, how many of them end there, and the answers."""
    found = asked.answers(state)
    right = [
        answer.split("<|endoftext|>")[0].split()[:1] == [place] for answer, place in zip(found, PLACES, strict=True)
    ]
    alone = [is_right and answer.split("<|endoftext|>")[0].split() == [place] and "<|endoftext|>" in answer
             for is_right, answer, place in zip(right, found, PLACES, strict=True)]  # fmt: skip
    norms = {name: [round(float(layer.norm()), 2) for layer in tensor[0]] for name, tensor in state.tensors.items()}
    print(
        f"{what}: first word right {sum(right)} of {len(right)}, nothing after it {sum(alone)}; {norms}; {found}",
        flush=True,
    )


def main(name: str, folder: str, segments: int) -> None:
    """Read, ask, put other layers' memories in, ask again."""
    asked = Asked(name)
    model, tokenizer = asked.model, asked.tokenizer
    text = "".join(path.read_text("utf-8") for path in sorted(Path(folder).iterdir()))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    length = model.memory_config.segment_length
    facts = [torch.tensor(tokenizer(f" Mary went to the {place}.")["input_ids"]) for place in PLACES]
    starts = [row * APART for row in range(len(facts))]
    first = torch.stack(
        [torch.cat([ids[at : at + length - len(fact)], fact]) for at, fact in zip(starts, facts, strict=True)]
    )
    state = model.read(first, memory_state=model.initial_state(len(facts)))
    step, early = AT_ONCE * length, dict[str, Tensor]()
    for number in range(1, segments // AT_ONCE + 1):
        begins = [(start + number * step) % (len(ids) - step) for start in starts]
        state = model.read(torch.stack([ids[at : at + step] for at in begins]), memory_state=state)
        early = early or state.tensors
        if number & (number - 1) == 0:
            report(f"{AT_ONCE * number} segments", asked, state)
    for layer in range(len(state.tensors["A"][0])):
        for what, under, over in (("late", state.tensors, early), ("early", early, state.tensors)):
            tensors = {name: tensor.clone() for name, tensor in under.items()}
            for name, tensor in tensors.items():
                tensor[:, layer] = over[name][:, layer]
            other = "early" if what == "late" else "late"
            report(f"{what}, layer {layer + 1} {other}", asked, replace(state, tensors=tensors))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
