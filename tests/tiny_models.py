"""A tiny GPT-2 with a memory, and a byte-level tokenizer, made without a network."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from recurrent_memory import MemoryConfig, RecurrentMemoryModel

END = "<|endoftext|>"
S = 16
VOCAB = 320
CORPUS = "Mary went to the garden. John moved to the kitchen, and Sandra journeyed to the bathroom. Where is Mary?\n"


@cache
def tiny_tokenizer() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    backend.train_from_iterator([CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, clean_up_tokenization_spaces=False)


def tiny_backbone(seed: int = 0, positions: int = 64) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_model(seed: int = 0, segment_length: int = S, num_memory_tokens: int = 2) -> RecurrentMemoryModel:
    """Its weights are large, so that what it read long ago still shows in the memory."""
    memory = MemoryConfig(num_memory_tokens=num_memory_tokens, segment_length=segment_length)
    return RecurrentMemoryModel.from_backbone(tiny_backbone(seed), memory)


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    tiny_model(seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def prose(num_sentences: int, seed: int = 0) -> str:
    """Some text, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    people, places = ("Mary", "John", "Sandra", "Zoë"), ("garden", "kitchen", "bathroom", "café")
    picks = torch.randint(0, 4, (num_sentences, 2), generator=generator).tolist()
    return " ".join(f"{people[who]} went to the {places[where]}." for who, where in picks)
