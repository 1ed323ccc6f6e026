"""What is trained on: examples drawn from a seed, so that a batch is a pure function of (seed, step, place in the batch).

Nothing is shuffled and nothing is remembered: a training that goes on from step t draws what the uninterrupted one would
have drawn, whatever the number of processes or of accumulated parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..forward import IGNORE


class Example(TypedDict):
    """A text and what is to be learned from it.

    Args:
        input_ids: Token ids.
        labels: Decoders and masked LM: one for each token, -100 where there is no loss (not shifted; the model does that).
            Classification: the class. Encoder–decoders: what the decoder is to write.
        text_length: Tokens before the question, which begins a segment of its own; without it, there is no question.
        unanswerable: Whether the answer is not in the text.
        more: The same text with other questions.
        task: Of which of several tasks it is.
    """

    input_ids: list[int]
    labels: list[int] | int
    text_length: NotRequired[int]
    unanswerable: NotRequired[bool]
    more: NotRequired[list[Example]]
    task: NotRequired[str]


class SegmentedExamples(Protocol):
    """A task, as training sees it."""

    def draw(self, rng: random.Random, num_segments: int) -> Example:
        """An example that fills `num_segments` segments. All that is random in it comes from `rng`."""
        ...


class DrawnBatches(Dataset[list[Example]]):
    """The examples of a training, in order: item i belongs to step i // G, G examples a step over all processes.

    Args:
        examples: The task.
        seed: Of everything that is drawn.
        num_steps: Optimizer steps.
        batch_size: G.
        num_segments: The largest number of segments of an example.
        random_num_segments: Whether every step draws a number from 1 to `num_segments`, the same for its whole batch;
            else all examples have `num_segments`.
        candidates: How many examples are drawn for each place of a batch. All of a place are answerable or none: of both the
            unanswerable would always be the hardest.
        first_step: The number of the first step, that no two stages of a training draw the same.
    """

    def __init__(
        self,
        examples: SegmentedExamples,
        *,
        seed: int,
        num_steps: int,
        batch_size: int,
        num_segments: int,
        random_num_segments: bool = True,
        candidates: int = 1,
        first_step: int = 0,
    ) -> None:
        self.examples, self.seed, self.num_steps, self.batch_size = examples, seed, num_steps, batch_size
        self.first_step = first_step
        self.num_segments, self.random_num_segments, self.candidates = num_segments, random_num_segments, candidates

    def __len__(self) -> int:
        return self.num_steps * self.batch_size

    def num_segments_at(self, step: int) -> int:
        """The number of segments of every example of a step."""
        if not self.random_num_segments:
            return self.num_segments
        return random.Random(self._name(step)).randint(1, self.num_segments)

    def _name(self, step: int) -> str:
        return f"{self.seed}/{self.num_segments}/{self.first_step + step}"

    def __getitem__(self, index: int) -> list[Example]:
        """The candidates for one place."""
        step = index // self.batch_size
        rng = random.Random(f"{self._name(step)}/{index % self.batch_size}")
        number = self.num_segments_at(step)
        drawn = [self.examples.draw(rng, number) for _ in range(self.candidates)]
        first = _is_answerable(drawn[0])
        return [example if _is_answerable(example) == first else drawn[0] for example in drawn]


def held_out(examples: SegmentedExamples, seed: int, num_segments: int, index: int) -> Example:
    """Example `index` of those that accuracy is measured on: answerable, with one question, and never one of a training.

    The seeds of trainings have other names.
    """
    rng = random.Random(f"{seed}/held-out/{num_segments}/{index}")
    while not _is_answerable(example := examples.draw(rng, num_segments)):
        pass
    example.pop("more", None)
    return example


def _is_answerable(example: Example) -> bool:
    return not example.get("unanswerable", False)


def without_answer(example: Example) -> Example:
    """The same, marked: the answers to its questions are not in the text."""
    marked: Example = {**example, "unanswerable": True}
    if "more" in marked:
        marked["more"] = [without_answer(other) for other in marked["more"]]
    return marked


def unlabelled(example: Example) -> Example:
    """The same text, with nothing to be learned from it."""
    labels = example["labels"]
    return {**example, "labels": IGNORE if isinstance(labels, int) else [IGNORE] * len(labels)}


def collate_places(places: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
    """The candidates for all places of a batch, place by place, as one batch; see `collate`."""
    return collate([example for place in places for example in place])


def hardest(losses: Float[Tensor, " B*K"], candidates: int) -> Int[Tensor, " B"]:
    """Of `candidates` rows for each place the one with the largest loss; of equal ones the first.

    Online hard example mining: Shrivastava, Gupta, Girshick: Training Region-based Object Detectors with Online Hard Example
    Mining, arXiv:1604.03540. Chosen place by place, so that a batch is the same however it is shared out.

    Example:
        >>> hardest(torch.tensor([0.1, 0.3, 0.3, 0.9, 0.0, 0.2]), 3)
        tensor([1, 3])
    """
    chosen = losses.reshape(-1, candidates).argmax(1)  # what is no number counts as the largest, and stops the training
    return torch.arange(len(chosen), device=losses.device) * candidates + chosen


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Examples as a batch, padded on the right: `input_ids` and `attention_mask` `[B, T]`, `labels` `[B]` or `[B, T_out]`.

    `text_lengths` `[B]` is there if an example has a question, `unanswerable` `[B]` if one is without its answer, `texts` `[B]`,
    the number of the text, if one has more questions: each is a row.

    Raises:
        InputError: if some labels are classes and some are lists.
    """
    texts = [number for number, example in enumerate(examples) for _ in range(1 + len(example.get("more", ())))]
    examples = [row for example in examples for row in (example, *example.get("more", ()))]
    ids, mask = _padded([example["input_ids"] for example in examples], 0)
    given = [example["labels"] for example in examples]
    classes = [label for label in given if isinstance(label, int)]
    lists = [label for label in given if not isinstance(label, int)]
    if classes and lists:
        raise InputError("labels are an int in some examples of a batch and a list in others; a task gives one of them")
    labels = torch.tensor(classes) if classes else _padded(lists, IGNORE)[0]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if any("text_length" in example for example in examples):
        lengths = [example.get("text_length", len(example["input_ids"])) for example in examples]
        batch["text_lengths"] = torch.tensor(lengths)
    if not all(map(_is_answerable, examples)):
        batch["unanswerable"] = torch.tensor([not _is_answerable(example) for example in examples])
    if len(set(texts)) < len(texts):
        batch["texts"] = torch.tensor(texts)
    return batch


def _padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    values = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return values.reshape(len(rows), width), mask.reshape(len(rows), width)
