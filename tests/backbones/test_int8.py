"""Layers in eight bits: exact products of rounded numbers, near those of the model as it is, and nothing else changed."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from contract.backbones import BACKBONES, S
from contract.cases import copy_of, text_of
from recurrent_memory import ConfigError, MemoryState, RecurrentMemoryModel
from recurrent_memory.backbones.int8 import Int8Linear, is_quantized, quantize_layers
from recurrent_memory.inference.journal import Conditions
from recurrent_memory.models import load_model
from recurrent_memory.tasks.whereabouts import question
from tiny_models import tiny_model, tiny_tokenizer

ONE_KIND = [tiny for tiny in BACKBONES if tiny.carry == "hidden"]


def single(tiny) -> RecurrentMemoryModel:
    return copy_of(tiny, dtype=torch.float32)


def named(name: str) -> RecurrentMemoryModel:
    return single(next(tiny for tiny in BACKBONES if tiny.name == name))


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """By hand, in float64: each row in steps of a 127th of its largest number."""
    step = rows.double().abs().amax(-1, keepdim=True) / 127
    return (rows.double() / step.clamp(min=1e-300)).round() * step


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 1), (3, 5), (0, 4)])
def test_a_product_is_that_of_the_rounded_numbers(shape: tuple[int, ...], with_bias: bool) -> None:
    torch.manual_seed(0)
    linear, hidden = nn.Linear(24, 40, bias=with_bias).requires_grad_(False), torch.randn(*shape, 24)
    hidden[..., -1:, :] *= 1e3  # its neighbours are rounded by their own size
    made = Int8Linear(linear.weight, linear.bias)
    expected = rounded(hidden) @ rounded(linear.weight).T
    if with_bias:
        expected = expected + linear.bias.double()
    found = made(hidden)
    assert found.dtype == torch.float32
    assert found.shape == (*shape, 40)
    torch.testing.assert_close(
        found.double(), expected, rtol=2e-6, atol=1e-5 * float(expected.abs().amax() if expected.numel() else 1)
    )
    if len(shape) == 2 and shape[0]:
        assert torch.equal(made(hidden[:1]), found[:1]), "a row does not depend on the others"


def test_zeros_and_what_is_not_a_number() -> None:
    made = Int8Linear(torch.zeros(3, 4), torch.arange(3.0))
    assert torch.equal(made(torch.ones(1, 4)), torch.arange(3.0)[None])
    assert torch.equal(Int8Linear(torch.ones(3, 4), None)(torch.zeros(1, 4)), torch.zeros(1, 3))
    for wrong in (float("nan"), float("inf")):
        assert not torch.isfinite(Int8Linear(torch.ones(3, 4), None)(torch.tensor([[1.0, wrong, 2.0, 3.0]]))).any()


@pytest.mark.parametrize("tiny", ONE_KIND, ids=lambda tiny: tiny.name)
def test_a_model_reads_nearly_the_same(tiny) -> None:
    model, ids = single(tiny), torch.tensor([text_of(tiny, 3 * S + 2)])
    # One segment: these models have weights of random noise, and some make more of a small difference with every segment.
    plain = model.read(ids[:, : S + 1])
    saved, fingerprint, weights = copy.deepcopy(model), model.fingerprint, model.num_parameters()
    model.to_int8()
    assert is_quantized(model)
    assert not any(type(part) in (nn.Linear, Conv1D) for layer in model.view.layers() for part in layer.modules())
    assert model.num_parameters() < weights
    assert (model.compute_dtype, model.memory_dtype) == ("int8", torch.float32)
    first, state = model.read(ids[:, : S + 1]), model.read(ids)
    for name, tensor in plain.tensors.items():
        assert not torch.equal(first.tensors[name], tensor), "it was rounded"
        assert float((first.tensors[name] - tensor).norm() / tensor.norm()) < 0.15
    assert model.fingerprint == fingerprint, "it goes on from the other's states"
    saved.read(ids, memory_state=state)
    chunked = model.read(ids[:, S + 1 :], memory_state=first)
    for name, tensor in state.tensors.items():
        assert torch.equal(chunked.tensors[name], tensor)
    again = copy.deepcopy(model)
    again.to_int8()
    for name, tensor in again.read(ids).tensors.items():
        assert torch.equal(tensor, state.tensors[name])


def test_states_go_from_one_to_the_other(tmp_path) -> None:
    model = tiny_model()
    ids = torch.randint(0, 300, (1, 50))
    model.read(ids).save(tmp_path / "state.safetensors")
    quantized = copy.deepcopy(model)
    quantized.to_int8()
    state = MemoryState.load(tmp_path / "state.safetensors", model=quantized)
    quantized.generate(ids[:, :3], memory_state=state, max_new_tokens=3, do_sample=False)
    assert Conditions.of(quantized, 64, "sequential").dtype == "int8"
    assert Conditions.of(model, 64, "sequential").dtype == "float32"


def test_adapters_are_merged_first() -> None:
    model = tiny_model()
    model.add_peft_adapter(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False))
    ids = torch.randint(0, 300, (1, 50))
    plain = model.read(ids).memory
    model.to_int8()
    assert model.config.peft == {}
    assert float((model.read(ids).memory - plain).norm() / plain.norm()) < 0.15


def test_what_cannot_be_done_is_named(tmp_path) -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match="int8 is for a model in float32 on a CPU, and this one is in float64 on cpu"):
        copy.deepcopy(model).double().to_int8()
    with pytest.raises(ConfigError, match="is for a model in float32 on a CPU, and this one is in float32 on meta"):
        quantize_layers(copy.deepcopy(model).to("meta").view)
    model.to_int8()
    with pytest.raises(
        ConfigError, match="a model in int8 cannot be saved, its weights are rounded; load it in float32"
    ):
        model.save_pretrained(tmp_path)
    model.memory.requires_grad_(True)
    with pytest.raises(ConfigError, match="a model in int8 cannot be trained"):
        model(torch.ones(1, 40, dtype=torch.long), labels=torch.ones(1, 40, dtype=torch.long))
    per_layer = named("gpt2+per-layer")
    per_layer.to_int8()
    ids = torch.ones(1, 4 * S, dtype=torch.long)
    with pytest.raises(ConfigError, match="cannot stack layers in int8; take schedule='sequential', or float32"):
        per_layer.read(ids, schedule="diagonal")
    per_layer.read(ids, schedule="auto")
    for block in (emptied := tiny_model()).backbone.transformer.h:
        for name, module in list(block.named_modules()):
            if isinstance(module, Conv1D):
                block.set_submodule(name, nn.Identity())
    with pytest.raises(ConfigError, match="the layers of GPT2LMHeadModel have no linear modules to round"):
        emptied.to_int8()


def test_a_model_is_loaded_so(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, "cpu", "int8")
    assert model.compute_dtype == "int8"
    with pytest.raises(
        ConfigError, match="--dtype int4: is not one of auto, float32, .*, float64 .or int8, for a model"
    ):
        load_model(tmp_path, "cpu", "int4")


def test_the_shipped_model_still_answers() -> None:
    model, tokenizer = load_model("shipped", "cpu", "int8")
    text = "Mary went to the garden. John moved to the office. " + "It was a fine day, and nobody said a word. " * 60
    state = model.fold(model.read(torch.tensor([tokenizer(text)["input_ids"]])))
    for person, place in (("Mary", " garden"), ("John", " office")):
        ids = torch.tensor([tokenizer(question(person))["input_ids"]])
        with torch.no_grad():
            said = model(ids, memory_state=state, logits_to_keep=1).logits[0, -1].argmax()
        assert tokenizer.decode(said) == place
