"""Save, load, continue: exact, for states, models, and models with a PEFT adapter inside."""

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from contract.backbones import BACKBONES, DECODERS, M, S, Tiny
from contract.cases import (
    assert_close,
    assert_identical,
    assert_same_state,
    backbone_of,
    batch,
    batch_labels,
    copy_of,
    first_parameter,
    labels_of,
    memory_of,
    model_of,
    text_of,
    texts_of,
)
from recurrent_memory import (
    BackboneError,
    ConfigError,
    MemoryConfig,
    MemoryState,
    RecurrentMemoryConfig,
    RecurrentMemoryModel,
    StateError,
    StateModelMismatchError,
)

every_backbone = pytest.mark.parametrize("tiny", BACKBONES, ids=lambda tiny: tiny.name)
gpt2 = DECODERS[0]


def run(tiny: Tiny, model: RecurrentMemoryModel, seed: int = 0):
    """An output with everything in it, and its state."""
    texts = texts_of(tiny, (S + 2, 2 * S), seed)
    labels = batch_labels(tiny, labels_of(tiny, texts), "left")
    ids, mask = batch(texts, "left")
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, labels=labels)


def assert_same_model(actual: RecurrentMemoryModel, expected: RecurrentMemoryModel, tiny: Tiny) -> None:
    assert actual.fingerprint == expected.fingerprint
    assert actual.memory_config == expected.memory_config
    theirs = expected.state_dict()
    assert actual.state_dict().keys() == theirs.keys()
    for name, tensor in actual.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    ours, other = run(tiny, actual), run(tiny, expected)
    assert torch.equal(ours.logits, other.logits)
    assert torch.equal(ours.loss, other.loss)
    assert_identical(ours.memory_state, other.memory_state)


# ---------------------------------------------------------------------- states


@every_backbone
def test_a_saved_state_goes_on_exactly(tiny: Tiny, tmp_path: Path) -> None:
    model = model_of(tiny)
    state = model.read(*batch(texts_of(tiny), "right"))
    state.save(tmp_path / "state.safetensors")
    loaded = MemoryState.load(tmp_path / "state.safetensors", model=model)
    assert_identical(loaded, state)
    more = batch(texts_of(tiny, seed=20), "right")
    assert_identical(model.read(*more, memory_state=loaded), model.read(*more, memory_state=state))
    (loaded.to("cpu")).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "state.safetensors").read_bytes()


def test_a_row_saved_alone_is_the_same_file(tmp_path: Path) -> None:
    model = model_of(gpt2)
    texts = texts_of(gpt2, (2, 3 * S + 1, S))
    together = model.read(*batch(texts, "left"))
    for row, text in enumerate(texts):
        together[row].save(tmp_path / "a")
        alone = model.read(torch.tensor([text]))
        if torch.equal(alone.memory, together[row].memory):  # batched matrix products may round otherwise
            alone.save(tmp_path / "b")
            assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert together[row].pending.tolist() == alone.pending.tolist()


# ---------------------------------------------------------------------- models


@every_backbone
def test_a_saved_model_is_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    model = copy_of(tiny, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same_model(loaded, model, tiny)
    assert type(loaded.view) is type(model.view)
    assert loaded.view.special_ids() == model.view.special_ids()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.loss_type == model.loss_type
    # and again: what was loaded can be saved
    loaded.save_pretrained(tmp_path / "again")
    assert_same_model(RecurrentMemoryModel.from_pretrained(tmp_path / "again"), model, tiny)


@every_backbone
def test_a_model_saved_without_its_backbone_is_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    backbone_of(tiny).float().save_pretrained(tmp_path / "backbone")
    model = copy_of(tiny, dtype=torch.float32)
    model.backbone.load_state_dict(type(model.backbone).from_pretrained(tmp_path / "backbone").state_dict())
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "lean", backbone=tmp_path / "backbone")
    with safe_open(tmp_path / "lean" / "model.safetensors", "pt") as file:
        assert all(name.startswith("memory.") for name in file.keys())  # noqa: SIM118
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "lean")
    assert_same_model(loaded, model, tiny)
    loaded.save_pretrained(tmp_path / "again")  # whole
    assert_same_model(RecurrentMemoryModel.from_pretrained(tmp_path / "again"), model, tiny)
    shutil.rmtree(tmp_path / "backbone")
    RecurrentMemoryModel.from_pretrained(tmp_path / "again")
    with pytest.raises(BackboneError, match="backbone: the backbone of this model cannot be loaded"):
        RecurrentMemoryModel.from_pretrained(tmp_path / "lean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_saved_without_the_backbone(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of(gpt2).to(dtype)
    backbone.save_pretrained(tmp_path / "backbone")
    model = RecurrentMemoryModel.from_backbone(backbone, MemoryConfig(M, S))
    model.add_peft_adapter(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or name.startswith("memory."):
                parameter.normal_(std=0.1)
        model.backbone.transformer.ln_f.bias.add_(0.5)  # a weight of the backbone that was trained is kept too
    model.save_pretrained(tmp_path / "lean", backbone=tmp_path / "backbone")
    with safe_open(tmp_path / "lean" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert not any("base_layer" in name for name in names)
    assert {name for name in names if not ("lora_" in name or name.startswith("memory."))} == {
        "backbone.transformer.ln_f.bias"
    }
    transformers_logging.set_verbosity_warning()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for wanted in (None, torch.float32):
        loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "lean", **({"dtype": wanted} if wanted else {}))
        assert "MISSING" not in caplog.text, "what is in the backbone is not missing"
        assert loaded.dtype == (wanted or dtype)
        assert loaded.fingerprint == model.fingerprint
        theirs = model.state_dict()
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, theirs[name].to(loaded.dtype)), name


def test_a_backbone_may_be_elsewhere(tmp_path: Path) -> None:
    backbone_of(gpt2).float().save_pretrained(tmp_path / "backbone")
    model = RecurrentMemoryModel.from_backbone(tmp_path / "backbone", MemoryConfig(M, S))
    model.save_pretrained(tmp_path / "lean", backbone=tmp_path / "backbone")
    (tmp_path / "backbone").rename(tmp_path / "moved")
    with pytest.raises(
        BackboneError,
        match=r"cannot be loaded .*; if it is elsewhere, say where with --backbone, from_pretrained\(…, backbone=…\)",
    ):
        RecurrentMemoryModel.from_pretrained(tmp_path / "lean")
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "lean", backbone=tmp_path / "moved")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.config.backbone_source["name"] == str(tmp_path / "moved")
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(
        BackboneError, match=r"whole: has all of its weights, and no other backbone; leave backbone='moved' out"
    ):
        RecurrentMemoryModel.from_pretrained(tmp_path / "whole", backbone="moved")


def test_another_backbone_under_a_model_saved_without_it_is_refused(tmp_path: Path) -> None:
    backbone = backbone_of(gpt2).float()
    backbone.save_pretrained(tmp_path / "backbone")
    model = RecurrentMemoryModel.from_backbone(tmp_path / "backbone", MemoryConfig(M, S))
    model.save_pretrained(tmp_path / "lean", backbone=tmp_path / "backbone")
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    backbone.save_pretrained(tmp_path / "backbone")
    with pytest.raises(BackboneError, match="is not the backbone that this model was saved without"):
        RecurrentMemoryModel.from_pretrained(tmp_path / "lean")
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(2)
    with pytest.raises(BackboneError, match="no weight of it is in the model"):
        model.save_pretrained(tmp_path / "other", backbone=tmp_path / "backbone")
    assert not (tmp_path / "other").exists()


@every_backbone
def test_the_auto_classes_know_it(tiny: Tiny, tmp_path: Path) -> None:
    model = copy_of(tiny, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, RecurrentMemoryConfig)
    assert type(config.backbone_config) is type(model.backbone.config)
    assert config.memory_config == model.memory_config
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, RecurrentMemoryModel)
    assert_same_model(loaded, model, tiny)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), RecurrentMemoryModel)
    # A model made from its config alone has the shape, and a memory that is drawn.
    drawn = AutoModel.from_config(config)
    assert drawn.state_dict().keys() == model.state_dict().keys()
    assert float(drawn.get_parameter(first_parameter(drawn)).detach().std()) > 0


@every_backbone
def test_the_backbone_is_taken_as_it_is(tiny: Tiny) -> None:
    backbone = backbone_of(tiny)
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    model = RecurrentMemoryModel.from_backbone(backbone, memory_of(tiny), **tiny.arguments)
    assert model.backbone is backbone
    assert {name for name, _ in model.named_parameters() if not name.startswith("memory.")} == {
        f"backbone.{name}" for name in before
    }
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_from_a_folder_and_from_the_loaded_model_is_the_same(tmp_path: Path) -> None:
    backbone_of(gpt2).save_pretrained(tmp_path)
    torch.manual_seed(3)
    one = RecurrentMemoryModel.from_backbone(tmp_path, MemoryConfig(M, S))
    torch.manual_seed(3)
    other = RecurrentMemoryModel.from_backbone(str(tmp_path), MemoryConfig(M, S), dtype=torch.float32)
    assert one.fingerprint == other.fingerprint
    ids = torch.tensor([text_of(gpt2, S + 1)])
    with torch.no_grad():
        assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits, 0.0)


def test_the_attention_that_is_asked_for_is_the_backbones(tmp_path: Path) -> None:
    copy_of(gpt2, dtype=torch.float32).save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        model = RecurrentMemoryModel.from_pretrained(tmp_path, attn_implementation=attention)
        assert model.backbone.config._attn_implementation == attention
        assert model.config._attn_implementation == attention
    backbone_of(gpt2).save_pretrained(tmp_path / "plain")
    model = RecurrentMemoryModel.from_backbone(tmp_path / "plain", MemoryConfig(M, S), attn_implementation="eager")
    assert model.backbone.config._attn_implementation == model.config._attn_implementation == "eager"


def test_what_the_backbone_generates_with_is_kept(tmp_path: Path) -> None:
    backbone = backbone_of(gpt2)
    backbone.generation_config.eos_token_id = [5, 6]
    model = RecurrentMemoryModel.from_backbone(backbone, MemoryConfig(M, S))
    assert model.generation_config.eos_token_id == [5, 6]
    model.save_pretrained(tmp_path)
    assert RecurrentMemoryModel.from_pretrained(tmp_path).generation_config.eos_token_id == [5, 6]


# ---------------------------------------------------------------------- the fingerprint


def test_the_fingerprint_survives_dtype_device_and_copying(tmp_path: Path) -> None:
    model = copy_of(gpt2, dtype=torch.float32)
    fingerprint = model.fingerprint
    state = model.read(torch.tensor([text_of(gpt2, 20)]))
    for other in (
        copy.deepcopy(model),
        model.bfloat16(),
        copy.deepcopy(model),
        model.double(),
        model.cpu(),
        model.float(),
    ):
        assert other.fingerprint == fingerprint
        other.check_state(state)
    model.bfloat16().save_pretrained(tmp_path)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.fingerprint == fingerprint
    loaded.read(torch.tensor([[3]]), memory_state=state.to(dtype=torch.float64))
    assert len(fingerprint) == 32


@pytest.mark.parametrize("kind", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_the_fingerprint_changes_with_the_weights(kind: dict[str, bool]) -> None:
    model = copy_of(gpt2, dtype=torch.float32)
    seen = {model.fingerprint}
    ids = torch.tensor([text_of(gpt2, 20)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **kind)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        state = model.read(ids)  # not saved before the next step
        optimizer.step()
        with pytest.raises(StateError, match="the model's weights have changed since it wrote this state"):
            _ = state.fingerprint
        seen.add(model.fingerprint)
    model.load_state_dict(model_of(gpt2, dtype=torch.float32).state_dict(), assign=True)
    assert len(seen) == 3
    assert model.fingerprint not in seen - {model_of(gpt2, dtype=torch.float32).fingerprint}
    model.memory.initial_memory = torch.nn.Parameter(model.memory.initial_memory.detach() + 1)
    assert model.fingerprint not in seen


def test_another_model_refuses_the_state(tmp_path: Path) -> None:
    ids = torch.tensor([text_of(gpt2, 20)])
    model = copy_of(gpt2)
    state = model.read(ids)
    state.save(tmp_path / "state")
    other = RecurrentMemoryModel.from_backbone(backbone_of(gpt2, seed=5).double(), memory_of(gpt2))
    expected = f"written by a model with fingerprint {model.fingerprint}, this one has {other.fingerprint}"
    with pytest.raises(StateModelMismatchError, match=f"state: was {expected}; use the model that wrote it, or read"):
        MemoryState.load(tmp_path / "state", model=other)
    for use in (other.read, lambda ids, memory_state: other(input_ids=ids, memory_state=memory_state)):
        with pytest.raises(StateModelMismatchError, match=f"memory_state: was {expected}"):
            use(ids, memory_state=state)
        with pytest.raises(StateModelMismatchError, match=f"memory_state: was {expected}"):
            use(ids, memory_state=MemoryState.load(tmp_path / "state"))
    with pytest.raises(StateModelMismatchError, match="memory settings MemoryConfig.*use the model that wrote it"):
        model_of(gpt2, 1).read(ids, memory_state=state)
    with pytest.raises(StateModelMismatchError, match="states of different models cannot be one batch"):
        MemoryState.cat([state, other.read(ids)])


def test_while_a_model_is_trained_its_states_go_on_but_are_not_saved(tmp_path: Path) -> None:
    model = copy_of(gpt2, dtype=torch.float32)
    ids = torch.tensor([text_of(gpt2, 20)])
    named, carried = model.read(ids), model.read(ids)
    assert named.fingerprint == model.fingerprint
    named.save(tmp_path / "before")
    model = copy_of(gpt2, dtype=torch.float32)
    carried = model.read(ids)
    with torch.no_grad():
        model.memory.initial_memory.add_(1)
    later = model.read(ids, memory_state=carried)  # as training with carried memories does
    assert len(MemoryState.cat([later, model.read(ids)])) == 2
    with pytest.raises(
        StateError, match="the model's weights have changed since it wrote this state .*read the text again"
    ):
        later.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    with pytest.raises(StateModelMismatchError):
        MemoryState.load(tmp_path / "before", model=model)
    model.read(ids).save(tmp_path / "state")


# ---------------------------------------------------------------------- PEFT adapters inside


def lora(**more) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], **more)


def draw_adapters(model: torch.nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def with_adapter(way: str) -> RecurrentMemoryModel:
    llama = next(tiny for tiny in DECODERS if tiny.name == "llama")
    backbone = backbone_of(llama)
    if way == "given":
        peft = get_peft_model(backbone, lora())
        draw_adapters(peft)
        model = RecurrentMemoryModel.from_backbone(peft.eval(), MemoryConfig(M, S))
    else:
        model = RecurrentMemoryModel.from_backbone(backbone, MemoryConfig(M, S))
        model.add_peft_adapter(lora())
        draw_adapters(model)
    return model.eval()


llama = next(tiny for tiny in DECODERS if tiny.name == "llama")


def test_an_adapter_that_is_given_computes_what_it_did() -> None:
    peft = get_peft_model(backbone_of(llama), lora())
    draw_adapters(peft)
    peft.eval()
    ids = torch.tensor([text_of(llama, S)])
    with torch.no_grad():
        expected = peft(input_ids=ids).logits
        plain = backbone_of(llama)(input_ids=ids).logits
        model = RecurrentMemoryModel.from_backbone(peft, MemoryConfig(0, S))
        assert_close(model(input_ids=ids).logits, expected, 1e-6)
    assert float((expected - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("way", ["given", "added"])
def test_an_adapter_trains_with_the_memory_and_is_saved_and_loaded_with_it(way: str, tmp_path: Path) -> None:
    model = with_adapter(way)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "lora_" in name} | {"memory.initial_memory"}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids = torch.tensor([text_of(llama, 3 * S)])
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable

    model.save_pretrained(tmp_path)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert_same_model(loaded, model, llama)
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trainable
    assert_same_model(AutoModel.from_pretrained(tmp_path), model, llama)


@pytest.mark.parametrize("way", ["given", "added"])
def test_merging_keeps_outputs_fingerprint_and_states(way: str, tmp_path: Path) -> None:
    model = with_adapter(way).double()
    before, fingerprint = run(llama, model), model.fingerprint
    model.merge_adapters()
    after = run(llama, model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert model.fingerprint == fingerprint
    assert_close(after.logits, before.logits, 1e-6)
    assert_same_state(after.memory_state, before.memory_state, 1e-6)
    before.memory_state.save(tmp_path / "state")  # written before, saved after
    model.save_pretrained(tmp_path / "model")
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "model")
    assert_same_model(loaded, model, llama)
    MemoryState.load(tmp_path / "state", model=loaded)


def test_of_several_adapters_the_active_one_stays_so(tmp_path: Path) -> None:
    peft = get_peft_model(backbone_of(llama), lora(), adapter_name="first")
    peft.add_adapter("second", lora())
    draw_adapters(peft)
    peft.set_adapter("first")
    model = RecurrentMemoryModel.from_backbone(peft.eval(), MemoryConfig(M, S))
    model.save_pretrained(tmp_path)
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path)
    assert_same_model(loaded, model, llama)
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    with pytest.raises(ConfigError, match="an adapter named 'second' is already there; choose another name"):
        loaded.add_peft_adapter(lora(), name="second")


def test_modules_to_save_are_kept_and_merged(tmp_path: Path) -> None:
    peft = get_peft_model(backbone_of(llama), lora(modules_to_save=["lm_head"]))
    draw_adapters(peft)
    with torch.no_grad():
        peft.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.5)
    # float64: adapters as large as these make a merged sum differ from the unmerged one by more than float32 holds
    model = RecurrentMemoryModel.from_backbone(peft.eval().double(), MemoryConfig(M, S))
    model.save_pretrained(tmp_path)
    assert_same_model(RecurrentMemoryModel.from_pretrained(tmp_path), model, llama)
    before = run(llama, model)
    model.merge_adapters()
    assert type(model.backbone.lm_head) is torch.nn.Linear
    assert_close(run(llama, model).logits, before.logits, 1e-5)


def test_an_adapter_that_cannot_be_kept_inside_is_refused() -> None:
    peft = get_peft_model(backbone_of(llama), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(
        ConfigError, match=r"the adapter 'default' \(PROMPT_TUNING\) cannot be kept inside a model: .*Merge it"
    ):
        RecurrentMemoryModel.from_backbone(peft, MemoryConfig(M, S))
    model = copy_of(llama)
    with pytest.raises(ConfigError, match=r"the adapter 'default' \(PromptTuningConfig\) cannot be put in"):
        model.add_peft_adapter(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def test_the_whole_model_can_be_put_into_peft_with_the_memory_to_save(tmp_path: Path) -> None:
    peft = get_peft_model(copy_of(llama, dtype=torch.float32), lora(modules_to_save=["memory"]))
    ids = torch.tensor([text_of(llama, 3 * S)])
    before = {name: parameter.clone() for name, parameter in peft.named_parameters()}
    peft(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(peft.parameters(), lr=0.1).step()
    moved = {name for name, parameter in peft.named_parameters() if not torch.equal(parameter, before[name])}
    assert "base_model.model.memory.modules_to_save.default.initial_memory" in moved
    assert all("lora_" in name or "memory.modules_to_save" in name for name in moved)
    peft.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy_of(llama, dtype=torch.float32), tmp_path).eval()
    with torch.no_grad():
        assert_close(again(input_ids=ids).logits, peft(input_ids=ids).logits, 0.0)
