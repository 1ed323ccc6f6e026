"""Associative retrieval: keys with their values, one of which is asked for. It measures how much a memory holds.

Rodkin, Kuratov, Bulatov, Burtsev: Associative Recurrent Memory Transformer (arXiv:2407.04841), section 4.1, "remember" and
"rewrite", with common words for keys and values.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..errors import ConfigError
from .base import Placement, Sample


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A word each in the vocabularies of BERT, of SmolLM2 and of the model in the package: what is measured is the memory, not the
# spelling of numbers.
KEYS = _words(
    """
    man time face day thought hand room make men look father woman love still mind take head mother place right thing people
    half enough round world moment side course girl child far word light new find kind boy end mean part together feel help
    keep small dark care call open hard sort less table read known answer window won strong low large rest turn times
    possible above point already short red deep show change return clear need position forward walk state second seem order
    run garden real law moved common write step general cause free pass cut view bit note object hall line distance follow
    below simple writing act ring top office tree expect break cast memory fast sign cross allow lead path number single
    consider post field loss success result pair accept mark start kitchen shape class special express language edge vision
    weight value dim image rank match sin frame cost instance bedroom level previous double sum fail avoid support height
    example degree cat constant fill add size custom system original rope row color raise count final exact base type leg
    mode continue check interval backward similar depth model inner depend process pick obtain positive store warn current
    error
    """
)
VALUES = _words(
    """
    think life house night heart myself friend name work best full ask passed true bed children fact power use hold try form
    soft public length instead bound stop force respect ear empty beg appear draw key search equal group flat library direct
    argument require native handle correct list copy string
    """
)

_NUM_PAIRS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


class Pairs:
    """Pairs such as "garden is night.", in which no key is there twice; the question is "? garden".

    Without the mark before it the key would be another token than in the pair, in vocabularies that count the space to the word.
    A pair is four tokens: in segments of four, alone, each has one of its own, as in the paper.

    Args:
        num_pairs: How many; of several numbers, one is drawn for each sample. In short texts those that fit are drawn.
        num_keys: How many keys there are. A model finds out what a key is for far sooner if there are few.
        rewrite: Whether keys are drawn anew for each pair from half as many keys as there are pairs, so that most of them get
            a new value later on. The last one is asked for.
        alone: Whether the pairs are the whole text, which then has as many as are exactly its length; else they stand
            anywhere in a longer one.

    Raises:
        ConfigError: if a number of pairs is below 1 or above the number of keys, or there are not so many keys.

    Example:
        >>> sample = Pairs(num_pairs=2).draw(random.Random(0))
        >>> sample.facts, sample.question, sample.answer
        (('obtain is house.', 'writing is fact.'), '? writing', 'fact')
    """

    name = "pairs"
    answers: tuple[str, ...] | None = VALUES

    def __init__(
        self,
        num_pairs: int | Sequence[int] | None = None,
        *,
        num_keys: int = len(KEYS),
        rewrite: bool = False,
        alone: bool = False,
    ) -> None:
        if not _is_count(num_keys, len(KEYS)):
            raise ConfigError(f"num_keys={num_keys!r} of task 'pairs' must be from 1 to {len(KEYS)}")
        if num_pairs is None:
            num_pairs = [number for number in _NUM_PAIRS if number <= num_keys]
        self.num_pairs: tuple[int, ...] = tuple(num_pairs) if isinstance(num_pairs, Sequence) else (num_pairs,)
        self.rewrite = rewrite
        self.placement: Placement = "alone" if alone else "anywhere"
        self._keys = KEYS[:num_keys]
        if not self.num_pairs or not all(_is_count(number, num_keys) for number in self.num_pairs):
            raise ConfigError(
                f"num_pairs={num_pairs!r} of task 'pairs' must be from 1 to {num_keys}, the number of keys"
            )

    def draw(self, rng: random.Random) -> Sample:
        """Pairs, and the question for one of their keys, all alike likely."""
        number = rng.choice(self.num_pairs)
        if self.rewrite:
            known = rng.sample(self._keys, (number + 1) // 2)
            keys = [rng.choice(known) for _ in range(number)]
        else:
            keys = rng.sample(self._keys, number)
        values = [rng.choice(VALUES) for _ in keys]
        last = {key: index for index, key in enumerate(keys)}
        asked = rng.choice(sorted(last))
        facts = tuple(f"{key} is {value}." for key, value in zip(keys, values, strict=True))
        return Sample(facts, f"? {asked}", values[last[asked]], (last[asked],), VALUES)

    def ask_more(self, rng: random.Random, sample: Sample, number: int) -> list[Sample]:
        """The questions for others of its keys."""
        pairs = [fact.removesuffix(".").split(" is ") for fact in sample.facts]
        last = {key: index for index, (key, _) in enumerate(pairs)}
        others = [key for key in last if f"? {key}" != sample.question]
        asked = rng.sample(others, min(number, len(others)))
        return [Sample(sample.facts, f"? {key}", pairs[last[key]][1], (last[key],), VALUES) for key in asked]
