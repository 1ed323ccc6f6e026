"""The last word of a passage, given all before it: by a memory, by one that was reset, by a plain model in a window.

Passages whose last word people guess only if they have read the whole passage: Paperno et al., The LAMBADA dataset
(arXiv:1606.06031). Their context is read as any text is, a segment at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..backbones.base import config_limit
from ..backbones.decoder import DecoderBackbone
from ..errors import ConfigError, InputError
from ..head_loss import at_least_float32
from ..inference.reader import evaluating
from ..model import RecurrentMemoryModel
from .continuations import Prompt, Score, check_writes_text, read_prompts, score
from .perplexity import memory_bytes
from .perplexity_window import check_is_decoder, hash_weights


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage as tokens.

    Args:
        context: All but its last word.
        word: The last word, with the space before it.
    """

    context: tuple[int, ...]
    word: tuple[int, ...]


def split_passage(text: str, tokenizer: Any, name: str) -> Passage:
    """A text without its last word, and that word; tokens as they are when the whole is tokenized, where that is possible.

    Raises:
        InputError: if there are not two words.

    Example:
        >>> split_passage("It was a dark night", tokenizer, "row 1").word
        (1755,)
    """
    context, space, word = text.rstrip().rpartition(" ")
    if not context.strip() or not word:
        raise InputError(f"{name}: has no last word after others; give passages of at least two words")
    before, whole = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (context, text.rstrip()))
    if whole[: len(before)] != before or len(whole) == len(before):  # a token over the space between them
        whole = [*before, *tokenizer(space + word, add_special_tokens=False)["input_ids"]]
    return Passage(tuple(before), tuple(whole[len(before) :]))


class WordReader(ABC):
    """A way to read passages, of one model.

    Args:
        model: A decoder.
    """

    kinds: tuple[str, ...]
    """What `scores` gives of each passage, in order."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What it is, for the record."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """What is kept of a passage between its segments, in bytes."""

    @abstractmethod
    def segments_before(self, passage: Passage) -> int:
        """How many segments of the context lie before the one in which the word is predicted."""

    @abstractmethod
    def scores(self, passages: Sequence[Passage]) -> list[tuple[Score, ...]]:
        """How probable the last word of each is, in each of the `kinds`."""


class MemoryWords(WordReader):
    """A model with a memory; and with its memory reset before the segment in which the context ends.

    Raises:
        GenerationError: if the model does not continue texts.
    """

    kinds = ("memory", "reset")
    model: RecurrentMemoryModel

    def __init__(self, model: RecurrentMemoryModel) -> None:
        check_writes_text(model)
        super().__init__(model)

    @property
    def settings(self) -> dict[str, Any]:
        """See `WordReader.settings`."""
        return {"model": self.model.fingerprint, "segment_length": self.model.memory_config.segment_length}

    @property
    def state_bytes(self) -> int:
        """See `WordReader.state_bytes`."""
        return memory_bytes(self.model)

    def segments_before(self, passage: Passage) -> int:
        """See `WordReader.segments_before`."""
        return (len(passage.context) - 1) // self.model.memory_config.segment_length

    def scores(self, passages: Sequence[Passage]) -> list[tuple[Score, ...]]:
        """See `WordReader.scores`."""
        length, words = self.model.memory_config.segment_length, [passage.word for passage in passages]
        whole = [Prompt((), passage.context) for passage in passages]
        ends = [Prompt((), passage.context[self.segments_before(passage) * length :]) for passage in passages]
        kept, reset = (score(self.model, read_prompts(self.model, prompts), words) for prompts in (whole, ends))
        return list(zip(kept, reset, strict=True))


class WindowWords(WordReader):
    """A plain causal language model, with full attention to as much of the context as its window holds.

    Args:
        model: The model.
        window: Tokens of the window, those of the word that are read included.

    Raises:
        GenerationError: if the model does not continue texts.
        ConfigError: if the window does not fit the model's positions.
    """

    kinds = ("window",)

    def __init__(self, model: PreTrainedModel, window: int) -> None:
        check_is_decoder(model.config)
        limit = config_limit(model.config)
        if window < 1 or (limit is not None and window > limit):
            raise ConfigError(f"window={window} must be 1 to the model's {limit or 'many'} positions")
        super().__init__(model)
        self.window, self.view = window, DecoderBackbone(model)

    @property
    def settings(self) -> dict[str, Any]:
        """See `WordReader.settings`."""
        return {"model": hash_weights(self.model), "window": self.window}

    @property
    def state_bytes(self) -> int:
        """Nothing."""
        return 0

    def segments_before(self, passage: Passage) -> int:
        """See `WordReader.segments_before`."""
        return 0

    @torch.no_grad()
    def scores(self, passages: Sequence[Passage]) -> list[tuple[Score, ...]]:
        """See `WordReader.scores`."""
        longest = max(len(passage.word) for passage in passages)
        if longest > self.window:
            raise ConfigError(f"window={self.window} is shorter than a word of {longest} tokens; take a longer one")
        rows = [[*passage.context, *passage.word[:-1]][-self.window :] for passage in passages]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        found: list[tuple[Score, ...]] = []
        with evaluating(self.model):
            hidden = self.view.encode(self.view.embed(ids.to(self.model.device)), lengths.to(self.model.device))
            for number, passage in enumerate(passages):
                end, count = len(rows[number]), len(passage.word)
                logits = at_least_float32(self.view.head(hidden[number, end - count : end]))
                target = torch.tensor(passage.word, device=logits.device)
                log_probability = logits.log_softmax(-1).gather(1, target[:, None]).double().sum()
                is_greedy = bool((logits.argmax(-1) == target).all())
                found.append((Score(float(log_probability), is_greedy),))
        return found
