"""A model in llama2.c's binary format, with its tokenizer, as Hugging Face's.

    python -m recurrent_memory.convert_llama2c stories260K.bin tok512.bin --out stories260K

The format is that of https://github.com/karpathy/llama2.c, its first version: seven int32 of header, then float32.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .errors import InputError, RecurrentMemoryError

UNKNOWN, BOS, EOS = 0, 1, 2
_HEADER = struct.Struct("<7i")


def convert_model(path: str | Path) -> LlamaForCausalLM:
    """Read a checkpoint.

    Raises:
        InputError: if the file is missing, or is not as long as its header says.

    Example:
        >>> model = convert_model("stories260K.bin")
    """
    data = _read(path)
    if len(data) < _HEADER.size:
        raise InputError(f"{path}: has {len(data)} bytes, less than the header of a llama2.c checkpoint")
    dim, hidden, layers, heads, kv_heads, vocab, length = _HEADER.unpack_from(data)
    shares_classifier, vocab = vocab > 0, abs(vocab)  # a negative size says that the classifier has weights of its own
    if min(dim, hidden, layers, heads, kv_heads, vocab, length) < 1 or dim % heads or heads % kv_heads:
        raise InputError(f"{path}: is not a llama2.c checkpoint of the first version; its header makes no sense")
    head_dim = dim // heads
    kv_dim = kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocab, dim),
        "attention_norm": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv_dim, dim),
        "wv": (layers, kv_dim, dim),
        "wo": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm": (dim,),
        "rotations": (2, length, head_dim // 2),  # computed anew
    }
    if not shares_classifier:
        shapes["classifier"] = (vocab, dim)
    expected = _HEADER.size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != expected:
        raise InputError(
            f"{path}: has {len(data)} bytes, its header says {expected}; is it whole, and of the first version?"
        )
    weights: dict[str, Tensor] = {}
    offset = _HEADER.size
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        weights[name] = torch.from_numpy(np.frombuffer(data, "<f4", count, offset).reshape(shape).astype(np.float32))
        offset += 4 * count

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=shares_classifier,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=None,
        )
    )
    renamed = {"model.embed_tokens.weight": weights["embedding"], "model.norm.weight": weights["norm"]}
    renamed["lm_head.weight"] = weights.get("classifier", weights["embedding"])
    for layer in range(layers):
        names = {
            "input_layernorm": weights["attention_norm"],
            "post_attention_layernorm": weights["ffn_norm"],
            "self_attn.q_proj": _halves(weights["wq"], heads),
            "self_attn.k_proj": _halves(weights["wk"], kv_heads),
            "self_attn.v_proj": weights["wv"],
            "self_attn.o_proj": weights["wo"],
            "mlp.gate_proj": weights["w1"],
            "mlp.down_proj": weights["w2"],
            "mlp.up_proj": weights["w3"],
        }
        renamed |= {f"model.layers.{layer}.{name}.weight": tensor[layer] for name, tensor in names.items()}
    model.load_state_dict(renamed)
    return model.eval()


def _halves(weight: Tensor, heads: int) -> Tensor:
    """llama2.c rotates neighbouring features, Hugging Face a head's first half with its second."""
    layers, out, dim = weight.shape
    return weight.view(layers, heads, out // heads // 2, 2, dim).transpose(2, 3).reshape(layers, out, dim)


def convert_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer: a SentencePiece BPE with bytes to fall back on.

    Raises:
        InputError: if the file is missing or cut off.
    """
    data = _read(path)
    pieces: list[str] = []
    scores: list[float] = []
    try:
        offset = 4  # the length of the longest piece
        while offset < len(data):
            score, size = struct.unpack_from("<fi", data, offset)
            offset += 8
            if size < 0 or offset + size > len(data):
                raise InputError(f"{path}: is cut off, or is not a llama2.c tokenizer")
            pieces.append(data[offset : offset + size].decode())
            scores.append(score)
            offset += size
    except (struct.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is cut off, or is not a llama2.c tokenizer ({error})") from error
    if len(pieces) <= EOS:
        raise InputError(f"{path}: has no pieces, so it is not a llama2.c tokenizer")
    pieces[UNKNOWN], pieces[BOS], pieces[EOS] = "<unk>", "<s>", "</s>"
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (scores[index], piece[:cut], piece[cut:])
        for piece, index in ids.items()
        if index > EOS
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda merge: -merge[0])
    model = models.BPE(
        ids, [(left, right) for _, left, right in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a file in llama2.c's binary format"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Convert a checkpoint and its tokenizer into a folder. Exit status 0, or 2 with one line on what is wrong."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m recurrent_memory.convert_llama2c",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="the checkpoint, such as stories260K.bin")
    parser.add_argument("tokenizer", help="its tokenizer, such as tok512.bin")
    parser.add_argument("--out", required=True, help="the folder to write")
    options: Any = parser.parse_args(arguments)
    try:
        model, tokenizer = convert_model(options.model), convert_tokenizer(options.tokenizer)
    except RecurrentMemoryError as error:
        parser.error(str(error))
    if len(tokenizer) != model.config.vocab_size:
        parser.error(
            f"the tokenizer has {len(tokenizer)} pieces, the model {model.config.vocab_size}; they do not go together"
        )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
