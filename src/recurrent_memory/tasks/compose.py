"""Long texts of an exact number of tokens with the facts of a sample in them, of any length in constant memory.

The text is noise, the facts stand between its sentences (as in BABILong, arXiv:2406.10149, section 3) or its words, in
their order, and the whole is tokenized: nothing tells a fact from its surroundings but what it says. A piece of the
text is tokenized at a time, with some of the text before it, whose tokens must come out as they did.
"""

from __future__ import annotations

import itertools
import random
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError, InputError
from .base import Placement, Sample
from .hiding import hide, word_ends
from .pieces import Block, PieceEncoder, cut_pieces

Boundary = Literal["sentence", "word"]

_PIECE_CHARS = 8192
SENTENCE_REACH_CHARS = 1000
_SLACK_TOKENS = 4  # a fact may take a token more between other words, and the last place may be a word further on

SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*(?=\s)|\S(?=\s*\n\s*\n)""")


@dataclass(frozen=True, slots=True)
class Composed:
    """A sample in a long text.

    Args:
        text: The text, up to where its last token ends.
        token_ids: Its tokens.
        fact_spans: `(first token, token after the last)` of each fact.
        question: What is asked after the text; not in it.
        answer: The right answer.
    """

    text: str
    token_ids: list[int]
    fact_spans: tuple[tuple[int, int], ...]
    question: str
    answer: str


class ComposedStream:
    """A sample in a text that is never whole in memory: an iterator of lists of token ids, `length` in all.

    Args:
        sample: What to put in. `question` and `answer` are not in the text.
        noise: Pieces of text, cut anywhere, enough for `length` tokens (`itertools.cycle` repeats a short one).
            Some more than needed is taken from an iterator.
        tokenizer: A fast tokenizer of `transformers`, or a `tokenizers.Tokenizer`.
        length: Tokens of the text, facts included.
        rng: Draws the places.
        placement: `first`, the facts begin the text; or `anywhere`, each place is uniform over the noise's tokens.
        boundary: Whether a fact may stand after any sentence, or any word. Where no sentence ends for 1,000 characters,
            or before the text does, it is a word.

    Attributes:
        fact_spans: `(first token, token after the last)` of each fact that was given out so far; complete at the end.

    Raises:
        ConfigError: if the facts do not fit into `length`.
        InputError: when iterated: the noise is too short, has no white space, or cannot be tokenized in pieces.

    Example:
        >>> stream = ComposedStream(sample, noise, tokenizer, 10_000_000, random.Random(0))  # doctest: +SKIP
        >>> for token_ids in stream:  # doctest: +SKIP
        ...     state = model.read(token_ids, state)
        >>> stream.fact_spans  # doctest: +SKIP
        [(4711, 4718)]
    """

    def __init__(
        self,
        sample: Sample,
        noise: Iterable[str],
        tokenizer: Any,
        length: int,
        rng: random.Random,
        *,
        placement: Placement = "anywhere",
        boundary: Boundary = "sentence",
    ) -> None:
        for argument, value, accepted in (
            ("placement", placement, ("first", "anywhere")),
            ("boundary", boundary, ("sentence", "word")),
        ):
            if value not in accepted:
                raise ConfigError(f"{argument}={value!r} is unknown; give one of {', '.join(accepted)}")
        self.sample, self.length, self.boundary = sample, length, boundary
        self.fact_spans: list[tuple[int, int]] = []
        self._encoder = PieceEncoder(tokenizer)
        self._rng = rng
        cost = sum(self._encoder.count(f" {fact}") + _SLACK_TOKENS for fact in sample.facts)
        self._budget = length - cost
        if self._budget < 0:
            raise ConfigError(
                f"length={length} is too short for the {len(sample.facts)} facts of the sample, "
                f"which need up to {cost} tokens; give a greater length"
            )
        self._opening = sample.facts if placement == "first" else ()
        count = len(sample.facts) if placement == "anywhere" else 0
        self._targets = sorted(rng.randrange(self._budget + 1) for _ in range(count))
        self._pieces = cut_pieces((noise,) if isinstance(noise, str) else noise, min(_PIECE_CHARS, 8 * length + 256))

    def __iter__(self) -> Iterator[list[int]]:
        return (token_ids for _, token_ids in self.blocks())

    def blocks(self) -> Iterator[tuple[str, list[int]]]:
        """Pieces of the text with their tokens. A stream can be gone through once.

        Raises:
            InputError: as the class says.
        """
        num_noise_tokens = num_tokens = 0
        while num_tokens < self.length:
            piece = next(self._pieces, "")
            if not piece:
                raise InputError(
                    f"noise has {num_noise_tokens} tokens, too few for a text of {self.length}; "
                    "give more text, or itertools.cycle(texts)"
                )
            plain = self._encoder.encode(piece)
            if self._opening:
                block, spans = self._open(piece)
            else:
                block, spans = self._put(plain, num_noise_tokens, self.length - num_tokens)
            self.fact_spans += [(num_tokens + start, num_tokens + stop) for start, stop in spans]
            self._encoder.accept(block)
            yield block.cut(self.length - num_tokens)
            num_tokens += len(block.token_ids)
            num_noise_tokens += len(plain.token_ids)

    def _open(self, piece: str) -> tuple[Block, list[tuple[int, int]]]:
        """The first piece, with the facts before it."""
        facts = self._opening
        self._opening = ()
        block = self._encoder.encode(" ".join(facts) + ("" if piece[:1].isspace() else " ") + piece)
        ends = list(itertools.accumulate(len(fact) + 1 for fact in facts))
        return block, [block.tokens_of(end - len(fact) - 1, end - 1) for fact, end in zip(facts, ends, strict=True)]

    def _put(self, plain: Block, num_noise_tokens: int, room: int) -> tuple[Block, list[tuple[int, int]]]:
        """A piece of noise with the facts whose turn it is."""
        due = [token for target in self._targets if (token := target - num_noise_tokens) < len(plain.token_ids)]
        if not due:
            return plain, []
        self._targets = self._targets[len(due) :]
        facts = self.sample.facts[len(self.fact_spans) : len(self.fact_spans) + len(due)]
        text, ends = plain.text, word_ends(plain.text)
        places = self._places(plain, due, self._budget - num_noise_tokens)
        while True:
            hidden = hide(text, facts, places, self._rng)
            block = self._encoder.encode(hidden.text)
            spans = [block.tokens_of(start, stop) for start, stop in hidden.spans]
            if spans[-1][1] <= room:
                return block, spans
            # The last words before the end of the text were longer than thought: a word further back, then.
            before = bisect_left(ends, places[-1]) - 1
            if before < 0:
                raise InputError(
                    f"noise has no place between words for {facts[-1]!r} near the end of {self.length} tokens; "
                    "give another length, or text with shorter words"
                )
            places = [min(place, ends[before]) for place in places]

    def _places(self, plain: Block, tokens: list[int], budget: int) -> list[int]:
        """Characters of a piece: the end of the sentence that a token is in, or else of its word."""
        text = plain.text
        sentence_ends = [match.end() for match in SENTENCE_END.finditer(text)] if self.boundary == "sentence" else []
        limit = plain.starts[budget] if budget < len(plain.starts) else len(text)
        places: list[int] = []
        for token in tokens:
            position = plain.starts[token]
            found = bisect_left(sentence_ends, position)
            place = sentence_ends[found] if found < len(sentence_ends) else len(text) + 1
            places.append(place if place <= min(position + SENTENCE_REACH_CHARS, limit) else position)
        return places


def compose(
    sample: Sample,
    noise: Iterable[str],
    tokenizer: Any,
    length: int,
    rng: random.Random,
    *,
    placement: Placement = "anywhere",
    boundary: Boundary = "sentence",
) -> Composed:
    """Put a sample's facts into a text of `length` tokens, all of it in memory; for arguments see `ComposedStream`.

    Raises:
        ConfigError: if the facts do not fit into `length`.
        InputError: if the noise is too short, has no white space, or cannot be tokenized in pieces.

    Example:
        >>> composed = compose(sample, ["A text. Some more of it."], tokenizer, 512, rng)  # doctest: +SKIP
        >>> len(composed.token_ids)  # doctest: +SKIP
        512
    """
    stream = ComposedStream(sample, noise, tokenizer, length, rng, placement=placement, boundary=boundary)
    blocks = list(stream.blocks())
    text = "".join(text for text, _ in blocks)
    token_ids = [token for _, ids in blocks for token in ids]
    return Composed(text, token_ids, tuple(stream.fact_spans), sample.question, sample.answer)
