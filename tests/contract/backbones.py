"""The backbones that the contract suite runs over: tiny, random, made from a config without a network.

To add one, add a line to `BACKBONES`. `row_limit` is what a person reads in the model's documentation, not what the
library computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import transformers as hf

VOCAB = 48
CLS, SEP, PAD = 1, 2, 0
S, M = 6, 3
LAYERWISE = ("associative", "per-layer")


@dataclass(frozen=True, eq=False)
class Tiny:
    """A backbone of the suite.

    Args:
        name: In test ids.
        build: Makes the Hugging Face model, its weights random.
        row_limit: The longest row that it reads rightly; None: no limit.
        exact: Whether it computes in the dtype of its weights. Where it does not (RMSNorm, or ModernBERT's rotation, in
            float32), a comparison of rows that are batched or padded differently is good to float32's rounding only.
        special: [CLS], [SEP], padding, </s>: ids that do not occur inside a text.
        arguments: Of `from_backbone`.
        carry: What the memory carries from segment to segment.
        hold: How firmly `carry="sign"` holds a bit.
        recent: Memory tokens that are the last tokens read.
        slots: Whether memory tokens have embeddings of their own.
        kind: The kind of memory.
        cover: How much of a key's features the normaliser of an associative memory has at least.
    """

    name: str
    build: Callable[..., hf.PreTrainedModel]
    row_limit: int | None
    exact: bool = True
    special: tuple[int, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    carry: str = "hidden"
    hold: float = 0.0
    recent: int = 0
    slots: bool = False
    kind: str = "tokens"
    cover: float = 0.0

    @property
    def tolerance(self) -> float:
        """Largest difference allowed in float64, relative to the largest value where that is above 1."""
        return 1e-10 if self.exact else 1e-6

    @property
    def family(self) -> str:
        """The name without the memory's."""
        return self.name.partition("+")[0]

    @property
    def is_layerwise(self) -> bool:
        """Whether every layer has a memory of its own."""
        return self.kind in LAYERWISE

    @property
    def is_decoder(self) -> bool:
        return not self.special

    @property
    def is_classifier(self) -> bool:
        return self.family.endswith("-classify")

    @property
    def is_masked_lm(self) -> bool:
        return self.family.endswith("-mlm")

    @property
    def is_seq2seq(self) -> bool:
        return self.family == "t5"

    @property
    def cls_and_sep(self) -> tuple[int, int]:
        """The ids that an encoder's rows begin and end with."""
        if self.name.startswith("roberta"):
            return 0, 2
        return self.arguments.get("cls_token_id", CLS), self.arguments.get("sep_token_id", SEP)

    def overhead(self, num_memory_tokens: int) -> int:
        """Positions of a row that are not text."""
        if self.kind == "associative":
            return num_memory_tokens + (0 if self.is_decoder else 2)
        if self.kind == "per-layer" and not self.is_decoder and num_memory_tokens:
            return 2 * num_memory_tokens + 3
        if self.is_decoder:
            return 2 * num_memory_tokens - min(self.recent, num_memory_tokens)
        if self.is_seq2seq:
            return num_memory_tokens + 1
        return num_memory_tokens + 3 if num_memory_tokens else 2


def _decoder(cls: str, config: str, **values: Any) -> Callable[..., hf.PreTrainedModel]:
    def build(**more: Any) -> hf.PreTrainedModel:
        return getattr(hf, cls)(getattr(hf, config)(vocab_size=VOCAB, **(values | more)))

    return build


def _encoder(prefix: str, **values: Any) -> list[Callable[..., hf.PreTrainedModel]]:
    config = getattr(hf, f"{prefix}Config")

    def masked_lm(**more: Any) -> hf.PreTrainedModel:
        return getattr(hf, f"{prefix}ForMaskedLM")(config(vocab_size=VOCAB, **(values | more)))

    def classifier(**more: Any) -> hf.PreTrainedModel:
        return getattr(hf, f"{prefix}ForSequenceClassification")(
            config(vocab_size=VOCAB, num_labels=3, **(values | more))
        )

    return [masked_lm, classifier]


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
GQA = ROPE | {"num_key_value_heads": 2}
BERT = NO_DROPOUT | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
}
SPECIAL_IDS = {"cls_token_id": CLS, "sep_token_id": SEP}
BERT_SPECIAL = (CLS, SEP, PAD)

_bert = _encoder("Bert", **BERT)
_roberta = _encoder(
    "Roberta", **(BERT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1})
)
_distilbert = _encoder(
    "DistilBert",
    dim=16,
    hidden_dim=24,
    n_layers=2,
    n_heads=4,
    max_position_embeddings=32,
    pad_token_id=PAD,
    dropout=0.0,
    attention_dropout=0.0,
    seq_classif_dropout=0.0,
)
_modernbert = _encoder(
    "ModernBert",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    global_attn_every_n_layers=3,
    local_attention=50,
    max_position_embeddings=64,
    pad_token_id=PAD,
    cls_token_id=CLS,
    sep_token_id=SEP,
    bos_token_id=CLS,
    eos_token_id=SEP,
)


# Plain, projected and scaled embeddings, and the two other families.
SCALES = ("gpt2", "opt", "gemma3", "bert-mlm", "t5")


def _with_every_memory(backbones: list[Tiny]) -> list[Tiny]:
    """Each with every kind of memory and two carries; the others, which work on the same tensor, with one of each sort."""
    made = [
        *backbones,
        *(
            replace(tiny, name=f"{tiny.name}+{carry}", carry=carry)
            for carry in ("sign", "norm", "gate", "gated-norm", "first")
            for tiny in backbones
            if carry == "sign" or tiny.name in SCALES
        ),
        *(replace(tiny, name=f"{tiny.name}+hold", carry="sign", hold=0.5) for tiny in backbones if tiny.name in SCALES),
        *(
            replace(tiny, name=f"{tiny.name}+recent-{recent}", carry="gate", recent=recent)
            for recent in (2, M)
            for tiny in backbones
            if tiny.name in SCALES
        ),
        *(
            replace(tiny, name=f"{tiny.name}+slots", carry="sign", hold=0.3, recent=1, slots=True)
            for tiny in backbones
            if tiny.name in (*SCALES, "gpt-neox")
        ),
    ]
    single = [tiny for tiny in backbones if not tiny.is_seq2seq]
    made += [replace(tiny, name=f"{tiny.name}+{kind}", kind=kind) for kind in LAYERWISE for tiny in single]
    covered = [tiny for tiny in single if tiny.name in SCALES]
    return made + [
        replace(tiny, name=f"{tiny.name}+associative+cover", kind="associative", cover=0.5) for tiny in covered
    ]


DECODERS = [
    Tiny("gpt2", _decoder("GPT2LMHeadModel", "GPT2Config", n_positions=40, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0,
                          embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=None), 40),
    Tiny("opt", _decoder("OPTForCausalLM", "OPTConfig", hidden_size=16, ffn_dim=24, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=40, word_embed_proj_dim=12, dropout=0.0,
                         do_layer_norm_before=False, bos_token_id=1, eos_token_id=None, pad_token_id=0), 40),
    Tiny("gpt-neox", _decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", **(ROPE | {"hidden_dropout": 0.0})), 40),
    Tiny("llama", _decoder("LlamaForCausalLM", "LlamaConfig", **GQA), 40, exact=False),
    Tiny("mistral", _decoder("MistralForCausalLM", "MistralConfig", sliding_window=25, **GQA), 25, exact=False),
    Tiny("qwen3", _decoder("Qwen3ForCausalLM", "Qwen3Config", head_dim=4, **GQA), 40, exact=False),
    Tiny("gemma3", _decoder("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=4, query_pre_attn_scalar=4, sliding_window=25,
                            layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=2.0,
                            **GQA), 25, exact=False),
    Tiny("phi", _decoder("PhiForCausalLM", "PhiConfig", resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0,
                         **(ROPE | {"partial_rotary_factor": 0.5})), 40),
]  # fmt: skip
DECODERS = _with_every_memory(DECODERS)
ENCODERS = [
    *(Tiny(f"bert{kind}", build, 32, special=BERT_SPECIAL, arguments=SPECIAL_IDS)
      for kind, build in zip(("-mlm", "-classify"), _bert, strict=True)),
    *(Tiny(f"roberta{kind}", build, 30, special=(0, 1, 2))
      for kind, build in zip(("-mlm", "-classify"), _roberta, strict=True)),
    *(Tiny(f"distilbert{kind}", build, 32, special=BERT_SPECIAL, arguments=SPECIAL_IDS)
      for kind, build in zip(("-mlm", "-classify"), _distilbert, strict=True)),
    *(Tiny(f"modernbert{kind}", build, 26, exact=False, special=BERT_SPECIAL)
      for kind, build in zip(("-mlm", "-classify"), _modernbert, strict=True)),
]  # fmt: skip
ENCODERS = _with_every_memory(ENCODERS)
SEQ2SEQ = [
    Tiny(
        "t5",
        _decoder("T5ForConditionalGeneration", "T5Config", d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2,
                 num_heads=4, dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0),
        None,
        exact=False,
        special=(0, 1),
    )
]  # fmt: skip
SEQ2SEQ = _with_every_memory(SEQ2SEQ)
BACKBONES = [*DECODERS, *ENCODERS, *SEQ2SEQ]
