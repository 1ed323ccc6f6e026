"""A backbone in 4 bits: trained in stages, killed and resumed, saved, loaded and evaluated, always with the same packed numbers."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.backbones import four_bits
from recurrent_memory.errors import BackboneError, ConfigError, RecipeError
from recurrent_memory.models import load_model
from recurrent_memory.training.beginning import begin_with_backbone
from recurrent_memory.training.bptt import Backpropagation, backpropagate
from recurrent_memory.training.checkpoint import load_weights
from recurrent_memory.training.experiment import begin, load_experiment, run_experiment
from recurrent_memory.training.trained import LoraSettings, choose_trained
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from tiny_models import tiny_tokenizer
from training.copy_task import VOCAB, AnyLengthTask, S
from training.test_experiment import VALUES

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason='bitsandbytes is not installed: pip install "recurrent-memory[four-bit]", or make test-four-bit',
)
pytestmark = pytest.mark.filterwarnings("default:::(bitsandbytes|triton)")
TARGETS = ["q_proj", "v_proj"]
QUIET = {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True, "report_to": "none"}
IDS = torch.randint(2, VOCAB, (2, 3 * S + 1), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def settings() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def packed_model(folder: Path, **memory: Any) -> RecurrentMemoryModel:
    """With an adapter that does something."""
    torch.manual_seed(0)
    special = {"cls_token_id": 1, "sep_token_id": 2} if folder.name == "bert" else {}
    model = RecurrentMemoryModel.from_backbone(
        folder, MemoryConfig(2, S, **memory), **special, quantization_config=settings()
    )
    targets = TARGETS if (folder.name == "llama") else ["c_attn"] if folder.name == "gpt2" else ["query"]
    choose_trained(model, "lora", LoraSettings(2, 4, tuple(targets)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def experiment(folder: Path, out: Path, **changes: Any) -> Path:
    lora = {"r": 2, "alpha": 4, "target_modules": TARGETS, "bits": 4}
    values = {**VALUES, "backbone": str(folder), "lora": lora, "eval_every": 1, "out": str(out), **changes}
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def scales_of(model: RecurrentMemoryModel) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: state[name].clone() for name in four_bits.packed_names(model)}


@needs_bitsandbytes
def test_two_stages_a_kill_and_what_is_saved(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, results = run_experiment(load_experiment(experiment(llama, tmp_path / "whole")), AnyLengthTask(), **QUIET)
    assert [result.num_steps for result in results] == [2, 3]
    before = scales_of(begin(load_experiment(tmp_path / "whole.yaml")).build((), None))
    after = scales_of(whole)
    assert any(name.endswith("absmax") for name in before)
    assert {name.replace(".base_layer", "") for name in after} == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name.replace(".base_layer", "")]), name

    path, step, steps = experiment(llama, tmp_path / "model"), RecurrentMemoryTrainer.training_step, list[int]()

    def killed(self: RecurrentMemoryTrainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) > 2 * 4:  # two parts a step: in the third step of the second stage
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RecurrentMemoryTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(load_experiment(path), AnyLengthTask(), **QUIET)
    assert sorted(item.name for item in (tmp_path / "model.run").glob("stage-2*/checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    monkeypatch.setattr(RecurrentMemoryTrainer, "training_step", step)
    model, _ = run_experiment(load_experiment(path), AnyLengthTask(), resume=True, **QUIET)
    expected = whole.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name

    tiny_tokenizer().save_pretrained(tmp_path / "model")
    capsys.readouterr()
    loaded, _ = load_model(tmp_path / "model", "cpu", merged=True)
    assert "MISSING" not in capsys.readouterr().err
    assert list(loaded.config.peft) == ["lora"], "not merged"
    assert loaded.fingerprint == model.fingerprint
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert torch.equal(loaded.read(IDS).tensors["memory"], model.read(IDS).tensors["memory"])
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    size = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert size < 0.4 * sum(file.stat().st_size for file in llama.glob("*.safetensors"))


@needs_bitsandbytes
def test_a_model_in_4_bits_is_trained_further(llama: Path, tmp_path: Path) -> None:
    packed_model(llama).save_pretrained(tmp_path / "first")
    tiny_tokenizer().save_pretrained(tmp_path / "first")
    values = {key: value for key, value in VALUES.items() if key not in ("backbone", "memory", "lora")}
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump({**values, "model": str(tmp_path / "first"), "out": str(tmp_path / "more")}))
    model, _ = run_experiment(load_experiment(path), AnyLengthTask(), **QUIET)
    first, more = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "more"))
    changed = {name for name, tensor in first.items() if not torch.equal(tensor, more[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(
        ConfigError, match=r"trained='all': backbone\..*weight is packed into 4 bits, and cannot be trained"
    ):
        choose_trained(model, "all")
    with pytest.raises(ConfigError, match="first: is in 4 bits, and its adapters cannot be merged"):
        begin_with_backbone(str(tmp_path / "first"), MemoryConfig(2, S), None, {})


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_what_is_saved_is_loaded(name: str, llama: Path, tmp_path: Path) -> None:
    backbone_of(name, tmp_path)
    model = packed_model(tmp_path / name)
    inputs = {"input_ids": IDS} if name != "bert" else {"input_ids": IDS + 3}
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "once")
    once = RecurrentMemoryModel.from_pretrained(tmp_path / "once")
    assert torch.equal(once(**inputs).logits, expected)
    once.save_pretrained(tmp_path / "twice")
    twice = copy.deepcopy(RecurrentMemoryModel.from_pretrained(tmp_path / "twice"))
    assert torch.equal(twice(**inputs).logits, expected)
    assert twice.fingerprint == model.fingerprint
    texts = [(tmp_path / folder / "config.json").read_text() for folder in ("once", "twice")]
    assert [json.loads(text).get("quantization_config") for text in texts] == [None, None]
    half = RecurrentMemoryModel.from_pretrained(tmp_path / "once", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.uint8}
    off = ((half(**inputs).logits.float() - expected).norm() / expected.norm()).detach()
    assert float(off) < 0.1  # bfloat16 has 8 bits
    assert half.fingerprint == model.fingerprint
    state = model.read(inputs["input_ids"])
    state.save(tmp_path / "state.safetensors")
    assert torch.equal(once.read(inputs["input_ids"]).tensors["memory"], state.tensors["memory"])


def backbone_of(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if name == "gpt2":  # its weights lie the other way round
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=40, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
    if name == "bert":
        bert = BertConfig(
            vocab_size=VOCAB + 3, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=0
        )  # fmt: skip
        BertForMaskedLM(bert).save_pretrained(tmp_path / name)


@needs_bitsandbytes
def test_without_what_is_as_in_the_backbone(llama: Path, tmp_path: Path) -> None:
    """The embeddings and the head are left out; the packed weights are not, which are nowhere else."""
    model = packed_model(llama)
    model.save_pretrained(tmp_path / "lean", backbone=llama)
    kept = load_file(tmp_path / "lean" / "model.safetensors")
    assert "backbone.model.embed_tokens.weight" not in kept
    assert "backbone.model.layers.0.self_attn.q_proj.base_layer.weight" in kept
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "lean")
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


@needs_bitsandbytes
def test_an_evaluation_between_takes_no_gradient_away(llama: Path) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes would lay the weights out anew, for good, in a way that has no backward pass."""
    model = packed_model(llama)
    found: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        model.zero_grad()
        backpropagate(model.train(), IDS, IDS, method=Backpropagation("recompute"))
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            model.eval()(input_ids=IDS)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found[0].keys() == found[1].keys() == trained
    for name, gradient in found[0].items():
        assert bool(gradient.any()), name
        assert torch.equal(gradient, found[1][name]), name


@needs_bitsandbytes
def test_a_checkpoint_of_other_packed_weights_is_refused(llama: Path, tmp_path: Path) -> None:
    model = packed_model(llama)
    model.save_pretrained(tmp_path / "same")
    load_weights(model, tmp_path / "same")
    other = LlamaForCausalLM.from_pretrained(llama)
    other.model.layers[0].mlp.up_proj.weight.data *= -1
    other.save_pretrained(tmp_path / "other" / "llama")
    packed_model(tmp_path / "other" / "llama").save_pretrained(tmp_path / "others")
    with pytest.raises(
        RecipeError, match=r"others: is a checkpoint of another model .*up_proj.weight: .* other numbers"
    ):
        load_weights(model, tmp_path / "others")
    unpacked = RecurrentMemoryModel.from_backbone(llama, MemoryConfig(2, S))
    choose_trained(unpacked, "lora", LoraSettings(2, 4, tuple(TARGETS)))
    unpacked.save_pretrained(tmp_path / "unpacked")
    with pytest.raises(RecipeError, match="unpacked: is a checkpoint of another model"):
        load_weights(model, tmp_path / "unpacked")


@needs_bitsandbytes
def test_what_4_bits_do_not_go_with(llama: Path, tmp_path: Path) -> None:
    model = packed_model(llama)
    expected = model(input_ids=IDS).logits
    with pytest.raises(ConfigError, match="packed into 4 bits, and cannot be merged into them without loss"):
        model.merge_adapters()
    with pytest.raises(ConfigError, match="int8: the weights of this model are packed into 4 bits already"):
        model.to_int8()
    assert torch.equal(model(input_ids=IDS).logits, expected)
    in_layers = packed_model(llama, kind="per-layer")
    with pytest.raises(ConfigError, match="schedule='diagonal' cannot stack quantized weights"):
        in_layers.read(IDS, schedule="diagonal")
    sequential = in_layers.read(IDS).tensors
    for name, tensor in in_layers.read(IDS, schedule="auto").tensors.items():
        assert torch.equal(tensor, sequential[name])


def test_without_bitsandbytes_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bits, "is_bitsandbytes_available", lambda: False)
    backbone_of("gpt2", tmp_path)
    recipe = load_experiment(experiment(tmp_path / "gpt2", tmp_path / "model"))
    with pytest.raises(
        ConfigError, match=r"lora.bits: 4 bits are computed by bitsandbytes, which is not installed; pip"
    ):
        begin(recipe)
    model = RecurrentMemoryModel.from_backbone(tmp_path / "gpt2", MemoryConfig(2, S))
    model.config.backbone.quantization_config = settings().to_dict()
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(ConfigError, match="packed: 4 bits are computed by bitsandbytes, which is not installed"):
        RecurrentMemoryModel.from_pretrained(tmp_path / "packed")


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_backbone_is_not_loaded_in_4_bits_without_it(llama: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be loaded as a decoder .*bitsandbytes"):
        packed_model(llama)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone_task": "sequence-classification"},
            "lora.bits: the head of a classifier is new and has to be trained",
        ),
        ({"fsdp": True}, "lora.bits: fsdp cannot split packed weights"),
        ({"save_backbone": False}, "a hub id or a folder, not in 4 bits"),
        ({"backbone": None, "model": "folder", "memory": {}}, "lora.bits is of a backbone that is loaded"),
    ],
)
def test_what_a_recipe_in_4_bits_cannot_have(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_experiment(experiment(tmp_path / "absent", tmp_path / "model", **changes))


def test_an_unpacked_model_has_no_packed_weights() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    assert not four_bits.is_packed(model)
    assert four_bits.packed_names(model) == set()
    assert four_bits.four_bits_of(model.config) is None
