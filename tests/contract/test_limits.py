"""What a model can be a backbone, how long its rows may be, and what is said where it cannot."""

import re
from pathlib import Path

import pytest
import torch
import transformers as hf

from contract.backbones import BACKBONES, BERT, DECODERS, GQA, LAYERWISE, SEQ2SEQ, VOCAB, M, S, Tiny
from contract.cases import assert_identical, backbone_of, copy_of, first_parameter, memory_of, model_of, text_of
from recurrent_memory import BackboneError, ConfigError, MemoryConfig, RecurrentMemoryModel

every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)
CONFIG = MemoryConfig(num_memory_tokens=M, segment_length=S)
HOW_TO_ADD = r"a family is added with recurrent_memory.backbones.register_family: .*CONTRIBUTING.md"


# ---------------------------------------------------------------------- how long a row may be


@every_backbone
def test_the_longest_segment_works_and_one_more_token_does_not_fit(tiny: Tiny) -> None:
    if tiny.row_limit is None:
        RecurrentMemoryModel.from_backbone(backbone_of(tiny), MemoryConfig(M, 5000))
        return
    for num_memory_tokens in (M, 0):
        largest = tiny.row_limit - tiny.overhead(num_memory_tokens)
        with pytest.raises(ConfigError, match=f"take segment_length at most {largest}$") as error:
            RecurrentMemoryModel.from_backbone(
                backbone_of(tiny), memory_of(tiny, num_memory_tokens, largest + 1), **tiny.arguments
            )
        assert f"makes rows of {tiny.row_limit + 1} positions, but the backbone reads at most {tiny.row_limit}" in str(
            error.value
        )
        model = RecurrentMemoryModel.from_backbone(
            backbone_of(tiny), memory_of(tiny, num_memory_tokens, largest), **tiny.arguments
        )
        state = model.fold(model.read(torch.tensor([text_of(tiny, largest + 1)])))
        assert state.segments_folded.tolist() == [2]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values())
    with pytest.raises(ConfigError, match="take fewer memory tokens"):
        RecurrentMemoryModel.from_backbone(backbone_of(tiny), memory_of(tiny, tiny.row_limit, 1), **tiny.arguments)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "modernbert-mlm"])
def test_in_the_longest_row_every_layer_that_slides_sees_all(name: str) -> None:
    """By the backbone alone: in one layer the last position sees the first at the limit, and not beyond it."""
    tiny = next(tiny for tiny in BACKBONES if tiny.name == name)
    backbone = backbone_of(tiny, num_hidden_layers=1, layer_types=["sliding_attention"] if name != "mistral" else None)
    for length, sees in ((tiny.row_limit, True), (tiny.row_limit + 1, False)):
        row = torch.randn(1, length, 16, requires_grad=True, generator=torch.Generator().manual_seed(0))
        last = backbone.base_model(inputs_embeds=row).last_hidden_state[0, -1]
        (gradient,) = torch.autograd.grad(last.square().sum(), row)
        assert bool(gradient[0, 0].any()) is sees


def test_layers_that_do_not_slide_set_no_limit() -> None:
    qwen = hf.Qwen3Config(vocab_size=VOCAB, head_dim=4, sliding_window=8, use_sliding_window=False, **GQA)
    mistral = hf.MistralConfig(vocab_size=VOCAB, sliding_window=None, **GQA)
    gemma = hf.Gemma3TextConfig(
        vocab_size=VOCAB, head_dim=4, sliding_window=8, layer_types=["full_attention"] * 2, **GQA
    )
    for cls, config in ((hf.Qwen3ForCausalLM, qwen), (hf.MistralForCausalLM, mistral), (hf.Gemma3ForCausalLM, gemma)):
        assert RecurrentMemoryModel.from_backbone(cls(config), CONFIG).view.max_row_length() == 40


# ---------------------------------------------------------------------- the first memory


@every_backbone
def test_the_first_memory_is_drawn_like_the_output_of_the_embedding_layer(tiny: Tiny) -> None:
    model = copy_of(tiny)
    with torch.no_grad():
        expected = model.get_input_embeddings()(torch.arange(VOCAB)).std()
    assert model.view.embedding_std() == pytest.approx(float(expected), rel=1e-5)
    if tiny.family == "gemma3":
        assert float(expected) == pytest.approx(4 * float(model.get_input_embeddings().weight.detach().std()), rel=1e-4)
    draws = []
    for seed in range(100):
        torch.manual_seed(seed)
        model.memory.reset_parameters(model.view)
        draws.append(model.get_parameter(first_parameter(model)).detach().clone())
    # Of 100 · M · D draws; five standard errors.
    drawn = torch.stack(draws)
    assert float(drawn.std()) == pytest.approx(float(expected), rel=5 / (2 * drawn.numel()) ** 0.5)
    assert abs(float(drawn.mean())) < 5 * float(expected) / drawn.numel() ** 0.5


def test_widths_are_the_models() -> None:
    models = {tiny: model_of(tiny) for tiny in BACKBONES}
    widths = {tiny.name: model.get_parameter(first_parameter(model)).shape[-1] for tiny, model in models.items()}
    assert widths == {tiny.name: 12 if tiny.family == "opt" else 16 for tiny in BACKBONES}
    kept = {
        model.initial_state().tensors["A" if tiny.kind == "associative" else "layer_memory"].shape[-1]
        for tiny, model in models.items()
        if tiny.is_layerwise
    }
    assert kept == {16}  # OPT's layers are wider than its embeddings


# ---------------------------------------------------------------------- which models


def clip() -> hf.PreTrainedModel:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.CLIPConfig(
        text_config=small | {"vocab_size": VOCAB},
        vision_config=small | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    return hf.CLIPModel(config)


def mamba() -> hf.PreTrainedModel:
    return hf.MambaForCausalLM(hf.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))


def albert() -> hf.PreTrainedModel:
    return hf.AlbertForMaskedLM(hf.AlbertConfig(vocab_size=VOCAB, embedding_size=8, **BERT))


def causal_bert() -> hf.PreTrainedModel:
    return hf.BertLMHeadModel(hf.BertConfig(vocab_size=VOCAB, is_decoder=True, **BERT))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (mamba, r"model type 'mamba' is not a decoder, an encoder or an encoder–decoder known here"),
        (clip, r"model type 'clip' is not a decoder"),
        (causal_bert, r"model type 'bert' is not a decoder"),
        (albert, r"AlbertForMaskedLM takes embeddings of width 8 and gives hidden states of width 16"),
        (
            lambda: hf.GPT2Model(backbone_of(DECODERS[0]).config),
            r"GPT2Model is not a decoder with a head .*AutoModelForCausalLM",
        ),
        (lambda: hf.BertModel(hf.BertConfig(vocab_size=VOCAB, **BERT)), r"BertModel is not an? encoder with a head"),
        (
            lambda: hf.BertForTokenClassification(hf.BertConfig(vocab_size=VOCAB, **BERT)),
            r"BertForTokenClassification is not",
        ),
        (
            lambda: hf.T5Model(hf.T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
            r"T5Model is not",
        ),
    ],
    ids=["mamba", "clip", "causal-bert", "albert", "headless-gpt2", "headless-bert", "tokens-bert", "headless-t5"],
)
def test_a_family_that_is_not_supported_says_so_and_how_to_add_it(build, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as error:
        RecurrentMemoryModel.from_backbone(build(), CONFIG, cls_token_id=1, sep_token_id=2)
    assert re.search(HOW_TO_ADD, str(error.value))
    assert "\n" not in str(error.value)


def test_an_unsupported_folder_says_so_too(tmp_path: Path) -> None:
    mamba().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="model type 'mamba'"):
        RecurrentMemoryModel.from_backbone(tmp_path, CONFIG)


def test_a_model_that_looks_ahead_is_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone_of(DECODERS[0])
    body = type(model.base_model).forward

    def reversed_body(self, inputs_embeds, **kwargs):
        return body(self, inputs_embeds=inputs_embeds.flip(1), **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", reversed_body)
    with pytest.raises(BackboneError, match="GPT2LMHeadModel looks ahead, which a decoder must not; a family is added"):
        RecurrentMemoryModel.from_backbone(model, CONFIG)


def test_a_model_that_takes_no_embeddings_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone_of(DECODERS[0])
    monkeypatch.setattr(type(model.base_model), "forward", lambda self, input_ids, use_cache: None)
    with pytest.raises(BackboneError, match="GPT2LMHeadModel does not run on input embeddings"):
        RecurrentMemoryModel.from_backbone(model, CONFIG)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused_when_made_and_when_loaded(value: float, tmp_path: Path) -> None:
    backbone = backbone_of(DECODERS[0])
    with torch.no_grad():
        backbone.transformer.wte.weight[3, 4] = value
    with pytest.raises(BackboneError, match=r"'transformer.wte.weight' hold NaN or infinity; the model is broken"):
        RecurrentMemoryModel.from_backbone(backbone, CONFIG)
    model = copy_of(DECODERS[0])
    with torch.no_grad():
        model.memory.initial_memory[0, 0] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="hold NaN or infinity; the model is broken"):
        RecurrentMemoryModel.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- tasks and special tokens


def bert_folder(folder: Path) -> Path:
    backbone_of(next(tiny for tiny in BACKBONES if tiny.name == "bert-mlm")).save_pretrained(folder)
    return folder


def test_the_task_picks_the_head(tmp_path: Path) -> None:
    special = {"cls_token_id": 1, "sep_token_id": 2}
    folder = bert_folder(tmp_path)
    masked = RecurrentMemoryModel.from_backbone(folder, CONFIG, **special)
    assert type(masked.backbone) is hf.BertForMaskedLM
    classifier = RecurrentMemoryModel.from_backbone(
        folder, CONFIG, task="sequence-classification", num_labels=5, **special
    )
    assert classifier(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 5)
    with pytest.raises(
        ConfigError,
        match="task='causal-lm' is not for the family 'encoder'; choose one of masked-lm, sequence-classification",
    ):
        RecurrentMemoryModel.from_backbone(folder, CONFIG, task="causal-lm", **special)
    with pytest.raises(
        ConfigError, match="does not go with the loaded BertForMaskedLM; leave it out, or load another head"
    ):
        RecurrentMemoryModel.from_backbone(masked.backbone, CONFIG, task="sequence-classification", **special)
    with pytest.raises(ConfigError, match="num_labels=4, but the loaded BertForSequenceClassification has 5"):
        RecurrentMemoryModel.from_backbone(classifier.backbone, CONFIG, num_labels=4, **special)
    with pytest.raises(ConfigError, match=r"\['dtype'\] are for loading a backbone by name"):
        RecurrentMemoryModel.from_backbone(classifier.backbone, CONFIG, dtype=torch.float32, **special)


def test_special_ids_come_from_the_caller_the_tokenizer_or_the_config(tmp_path: Path) -> None:
    bert = next(tiny for tiny in BACKBONES if tiny.name == "bert-mlm")
    with pytest.raises(
        BackboneError, match=r"\[CLS\] and \[SEP\] ids of this encoder are not known; give from_backbone its tokenizer"
    ):
        RecurrentMemoryModel.from_backbone(backbone_of(bert), CONFIG)

    class Tokenizer:
        cls_token_id, sep_token_id = 4, 5

    model = RecurrentMemoryModel.from_backbone(backbone_of(bert), CONFIG, tokenizer=Tokenizer())
    assert model.config.special_ids == {"cls_token_id": 4, "sep_token_id": 5}
    model = RecurrentMemoryModel.from_backbone(backbone_of(bert), CONFIG, tokenizer=Tokenizer(), sep_token_id=6)
    assert model.config.special_ids == {"cls_token_id": 4, "sep_token_id": 6}
    roberta = next(tiny for tiny in BACKBONES if tiny.name == "roberta-mlm")
    assert RecurrentMemoryModel.from_backbone(backbone_of(roberta), CONFIG).config.special_ids == {
        "cls_token_id": 0,
        "sep_token_id": 2,
    }


@pytest.mark.parametrize("tiny", [t for t in BACKBONES if t.special], ids=lambda tiny: tiny.name)
def test_special_tokens_inside_the_input_are_taken_out(tiny: Tiny) -> None:
    model = model_of(tiny)
    text = text_of(tiny, 2 * S)
    special = list(tiny.special)
    state = model.read(torch.tensor([[special[0], *text[:S], *special, *text[S:], special[-1]]]))
    assert state.tokens_read.tolist() == [2 * S]
    assert_identical(state, model.read(torch.tensor([text])))
    if tiny.is_masked_lm:
        logits = model(input_ids=torch.tensor([[special[0], *text, special[-1]]])).logits
        assert not bool(logits[0, [0, -1]].any())
        assert torch.equal(logits[:, 1:-1], model(input_ids=torch.tensor([text])).logits)


# ---------------------------------------------------------------------- folders


def test_folders_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="has no config.json, so it is not a model folder"):
        RecurrentMemoryModel.from_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="has no config.json"):
        RecurrentMemoryModel.from_backbone(tmp_path, CONFIG)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BackboneError, match="is a file, not a model folder; give the folder that holds config.json"):
        RecurrentMemoryModel.from_pretrained(tmp_path / "file")
    with pytest.raises(BackboneError, match="missing/model: no model is there, neither as a folder nor on the hub"):
        RecurrentMemoryModel.from_pretrained("missing/model")
    with pytest.raises(BackboneError, match="missing/model: no model is there"):
        RecurrentMemoryModel.from_backbone("missing/model", CONFIG)
    plain = tmp_path / "plain"
    backbone_of(DECODERS[0]).save_pretrained(plain)
    with pytest.raises(
        BackboneError, match=r"is a gpt2 model without a memory; give it one with RecurrentMemoryModel.from_backbone"
    ):
        RecurrentMemoryModel.from_pretrained(plain)


def test_a_model_with_memory_is_no_backbone(tmp_path: Path) -> None:
    model = copy_of(DECODERS[0])
    with pytest.raises(BackboneError, match="has a memory already; load it with RecurrentMemoryModel.from_pretrained"):
        RecurrentMemoryModel.from_backbone(model, CONFIG)
    model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="has a memory already; load it with RecurrentMemoryModel.from_pretrained"):
        RecurrentMemoryModel.from_backbone(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "damage", ["no weights", "truncated", "pickle", "a weight is missing", "bad memory", "bad json", "unknown family"]
)
def test_damaged_model_folders(damage: str, tmp_path: Path) -> None:
    copy_of(DECODERS[0], dtype=torch.float32).save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    expected = "the weights cannot be loaded .*is the folder whole?"
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "pickle":
        torch.save({}, tmp_path / "pytorch_model.bin")
        weights.unlink()
    elif damage == "a weight is missing":
        from safetensors.torch import load_file, save_file

        kept = load_file(weights)
        del kept["memory.initial_memory"]
        save_file(kept, weights, metadata={"format": "pt"})
        expected = r"the weights lack \['memory.initial_memory'\]; is the folder whole\?"
    elif damage == "bad memory":
        config.write_text(config.read_text().replace('"segment_length": 6', '"segment_length": -6'))
        expected = "segment_length=-6 must be at least 1"
    elif damage == "bad json":
        config.write_text(config.read_text()[:100])
        expected = "no model is there"
    else:
        config.write_text(config.read_text().replace('"family": "decoder"', '"family": "martian"'))
        expected = "family 'martian' is not registered; import the package that adds it first"
    with pytest.raises((BackboneError, ConfigError), match=expected) as error:
        RecurrentMemoryModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", LAYERWISE)
def test_a_memory_in_every_layer_is_not_for_encoder_decoders(kind: str) -> None:
    expected = f"kind='{kind}' is for decoders and encoders; for an encoder–decoder take kind='tokens'"
    with pytest.raises(ConfigError, match=expected):
        RecurrentMemoryModel.from_backbone(backbone_of(SEQ2SEQ[0]), MemoryConfig(M, S, kind=kind))
