"""From llama2.c's format: the same logits, the same text, and a clear line for what is not of it."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recurrent_memory import InputError
from recurrent_memory.convert_llama2c import convert_model, convert_tokenizer, main

PIECES = [
    "<unk>",
    "\n<s>\n",
    "\n</s>\n",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    " ",
    "a",
    "b",
    " a",
    "ab",
    " ab",
    "\n",
]


def llama(shares: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(PIECES),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=shares,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def exported(model: LlamaForCausalLM) -> bytes:
    """As llama2.c's export.py writes it: rotated pairs are neighbours."""
    config, layers = model.config, model.model.layers

    def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
        return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)

    shares = config.tie_word_embeddings
    header = struct.pack("<7i", 16, 24, 2, 4, 2, config.vocab_size if shares else -config.vocab_size, 32)
    blocks = [model.model.embed_tokens.weight]
    blocks += [layer.input_layernorm.weight for layer in layers]
    blocks += [neighbours(layer.self_attn.q_proj.weight, 4) for layer in layers]
    blocks += [neighbours(layer.self_attn.k_proj.weight, 2) for layer in layers]
    blocks += [layer.self_attn.v_proj.weight for layer in layers]
    blocks += [layer.self_attn.o_proj.weight for layer in layers]
    blocks += [layer.post_attention_layernorm.weight for layer in layers]
    blocks += [layer.mlp.gate_proj.weight for layer in layers]
    blocks += [layer.mlp.down_proj.weight for layer in layers]
    blocks += [layer.mlp.up_proj.weight for layer in layers]
    blocks += [model.model.norm.weight, torch.zeros(2, 32, 2)]
    blocks += [] if shares else [model.lm_head.weight]
    return header + b"".join(block.detach().numpy().tobytes() for block in blocks)


def exported_tokenizer() -> bytes:
    data = struct.pack("<i", max(map(len, PIECES)))
    for index, piece in enumerate(PIECES):
        data += struct.pack("<fi", -float(index), len(piece.encode())) + piece.encode()
    return data


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "model.bin").write_bytes(exported(llama(shares=True)))
    (tmp_path / "tok.bin").write_bytes(exported_tokenizer())
    return tmp_path / "model.bin", tmp_path / "tok.bin"


@pytest.mark.parametrize("shares", [True, False])
def test_the_model_computes_the_same(shares: bool, tmp_path: Path) -> None:
    model = llama(shares)
    (tmp_path / "model.bin").write_bytes(exported(model))
    converted = convert_model(tmp_path / "model.bin")
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, model(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["ab", "a ab\nb", "ü🙂", " b", "", "aab  ab"])
def test_the_tokenizer_gives_the_text_back(text: str, files: tuple[Path, Path]) -> None:
    tokenizer = convert_tokenizer(files[1])
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer("ab").input_ids == [1, PIECES.index(" ab")]
    assert tokenizer("é").input_ids == [1, PIECES.index(" "), 3 + 0xC3, 3 + 0xA9]


def test_the_command_writes_a_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert main([*map(str, files), "--out", str(tmp_path / "out")]) == 0
    model, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert tokenizer.decode(tokenizer("ab a").input_ids, skip_special_tokens=True) == "ab a"
    assert torch.equal(model.model.norm.weight, llama(shares=True).model.norm.weight)


def test_the_command_says_in_one_line_what_is_wrong(files: tuple[Path, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "recurrent_memory.convert_llama2c",
        "missing.bin",
        str(files[1]),
        "--out",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        "missing.bin: cannot be read (No such file or directory); give a file in llama2.c's binary format"
        in result.stderr
    )
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "has 0 bytes, less than the header"),
        (lambda data: data[:-4], r"its header says \d+; is it whole"),
        (lambda data: data + b"\0", r"its header says \d+; is it whole"),
        (lambda data: b"\xff" * len(data), "its header makes no sense"),
        (lambda data: b"ak42" + data[4:], "its header"),
    ],
)
def test_what_is_no_checkpoint(change, message: str, files: tuple[Path, Path]) -> None:
    files[0].write_bytes(change(files[0].read_bytes()))
    with pytest.raises(InputError, match=message):
        convert_model(files[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "is cut off, or is not a llama2.c tokenizer"),
        (lambda data: data[:9], "is cut off"),
        (lambda data: data[:4], "has no pieces"),
        (lambda data: data + struct.pack("<fi", 0, 1) + b"\xff", "is cut off, or is not"),
    ],
)
def test_what_is_no_tokenizer(change, message: str, files: tuple[Path, Path]) -> None:
    files[1].write_bytes(change(files[1].read_bytes()))
    with pytest.raises(InputError, match=message):
        convert_tokenizer(files[1])
