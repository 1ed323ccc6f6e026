"""A lossless byte-level BPE vocabulary: `decode(encode(x)) == x` for every text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from ..tasks.whereabouts import draw_fact, question

END_OF_TEXT = "<|endoftext|>"
# Words with the character before them, up to three digits, punctuation with the line break and indentation after it.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+(?:[ \t]*[\r\n]+(?:[ \t]+(?= ))?)?"
    r"|[ \t]*[\r\n]+(?:[ \t]+(?= ))?|\s+(?!\S)|\s+"
)


def train_tokenizer(noise: Sequence[Sequence[str]], vocab_size: int, training_chars: int, seed: int) -> Any:
    """A vocabulary of the noise and of the task's sentences, as a `transformers` fast tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(noise, training_chars, random.Random(seed)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def _sample(noise: Sequence[Sequence[str]], chars: int, rng: random.Random) -> Iterator[str]:
    for documents in noise:
        left = chars // len(noise)
        for document in rng.sample(list(documents), len(documents)):
            yield document[: min(left, 100_000)]
            left -= min(len(document), 100_000)
            if left <= 0:
                break
    for _ in range(5_000):
        fact = draw_fact(rng)
        yield f"x {fact.sentence} {question(fact.person)}"
