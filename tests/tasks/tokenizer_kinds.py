"""A tokenizer of every kind, made without a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel, Metaspace, WordPiece

from recurrent_memory.tasks.library_text import take_text

FACTS = ("Mary went to the garden.", "John got the milk there.", "Mary moved to the office.")


@cache
def noise_text() -> str:
    return take_text(60_000)


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([noise_text()[:20_000], *FACTS], trainer)
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([noise_text()[:20_000], *FACTS], trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([noise_text()[:20_000], *FACTS], trainer)
    tokenizer.enable_truncation(128)  # as sentence-transformers ship theirs
    tokenizer.enable_padding(length=128)
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": _byte_level,
    "metaspace": _metaspace,
    "word piece": _word_piece,
}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return MAKERS[kind]()


def whole(kind: str, text: str) -> list[int]:
    tokenizer = Tokenizer.from_str(tokenizer_of(kind).to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids
