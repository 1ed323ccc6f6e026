"""What a memory is made of, without the rest of the last layer: the same numbers, from fewer of them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from contract.backbones import BACKBONES, S
from contract.cases import assert_close, batch, model_of, texts_of
from recurrent_memory.backbones.last_layer import is_possible, is_worth, take
from recurrent_memory.segments import Segment

pytestmark = pytest.mark.usefixtures("shortcuts_in_small_models")

TINY = [tiny for tiny in BACKBONES if tiny.carry == "hidden"]
TOKENS = [tiny for tiny in TINY if tiny.kind == "tokens"]
every_backbone = pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)


def segments(tiny) -> dict[str, Segment]:
    full = torch.tensor([text[:S] for text in texts_of(tiny, lengths=(S, S, S))])
    ids, mask = batch(texts_of(tiny, lengths=(3, S, 1)), "right")
    return {"full": Segment.full(full), "ragged": Segment(ids, mask.sum(1))}


@every_backbone
@pytest.mark.parametrize("which", ["full", "ragged"])
def test_a_shortcut_gives_the_memory_and_its_gradients(tiny, which: str) -> None:
    model = model_of(tiny)
    segment, view = segments(tiny)[which], model.view
    before = model.memory.fold(view, segments(tiny)["full"], model.initial_state(3).tensors)[1]
    assert all(tensor.any() for tensor in before.values())
    plain = model.memory.fold(view, segment, before)[1]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(power(plain), weights, allow_unused=True, retain_graph=True)
    short = model.memory.write(view, segment, before)
    assert plain.keys() == short.keys()
    for name, tensor in plain.items():
        assert_close(short[name], tensor, tiny.tolerance, name)
    found = torch.autograd.grad(power(short), weights, allow_unused=True)
    for new, old in zip(found, expected, strict=True):
        zero = torch.zeros(())
        assert_close(zero if new is None else new, zero if old is None else old, tiny.tolerance, "gradient")


def power(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.pow(3).sum() for tensor in tensors.values()]).sum()


def flops(model, segment: Segment) -> int:
    state = model.initial_state(3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.memory.write(model.view, segment, state.tensors)
    return counter.get_total_flops()


@every_backbone
@pytest.mark.parametrize("which", ["full", "ragged"])
def test_it_computes_less_and_the_switch_turns_it_off(tiny, which: str) -> None:
    model = model_of(tiny)
    segment = segments(tiny)[which]
    fast = flops(model, segment)
    model.fast = "off"
    plain = flops(model, segment)
    assert fast < plain
    model.fast = "auto"
    assert flops(model, segment) == fast


@pytest.mark.parametrize("tiny", TOKENS, ids=lambda tiny: tiny.name)
def test_no_weight_is_copied_for_each_row(tiny) -> None:
    """What a linear layer does with a view that has gaps."""
    model, seen = model_of(tiny), []
    linear = [module for module in model.view.layers()[-1].modules() if isinstance(module, nn.Linear)]
    for module in linear:
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    with torch.no_grad():
        model.memory.write(model.view, segments(tiny)["full"], model.initial_state(3).tensors)
    assert all(seen)
    assert len(seen) > len(linear) or not linear  # queries, keys and values are computed twice


@every_backbone
def test_the_model_is_left_as_it_was(tiny) -> None:
    model = model_of(tiny)
    modules, attributes = list(model.modules()), [dict(vars(module)) for module in model.modules()]
    model.memory.write(model.view, segments(tiny)["full"], model.initial_state(3).tensors)
    assert list(model.modules()) == modules
    for module, before in zip(modules, attributes, strict=True):
        assert {name: id(value) for name, value in vars(module).items()} == {
            name: id(value) for name, value in before.items()
        }


def test_layers_that_mix_positions_in_another_way_are_run_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8)
    assert is_possible(layer)
    layer.mixer = nn.Conv1d(8, 8, 3)
    assert not is_possible(layer)


def test_a_layer_without_this_attention_is_run_as_it_is() -> None:
    tiny = next(tiny for tiny in TOKENS if tiny.name == "gpt2")
    model = model_of(tiny)
    segment, tensors = segments(tiny)["full"], model.initial_state(3).tensors
    sdpa = model.memory.write(model.view, segment, tensors)["memory"]
    eager = copy.deepcopy(model)
    eager.backbone.set_attn_implementation("eager")
    assert_close(eager.memory.write(eager.view, segment, tensors)["memory"], sdpa, tiny.tolerance, "memory")
    assert flops(eager, segment) > flops(model, segment)


def test_positions_may_differ_from_row_to_row() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    assert torch.equal(take(hidden, slice(1, 3)), hidden[:, 1:3])
    positions = torch.tensor([[0, 3], [2, 1]])
    expected = torch.stack([hidden[0, [0, 3]], hidden[1, [2, 1]]])
    assert torch.equal(take(hidden, positions), expected)
    heads = hidden[:, None].expand(2, 5, 4, 3)
    assert torch.equal(take(heads, positions), expected[:, None].expand(2, 5, 2, 3))


def test_a_shortcut_is_taken_where_it_saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rows = nn.Linear(9, 10), torch.zeros(2, 8, 9)  # 100 weights; 2 rows of which 8 - 3 positions are left out
    for worth, taken in ((2_000, True), (2_001, False)):
        monkeypatch.setattr("recurrent_memory.backbones.last_layer.WORTH", worth)
        assert is_worth(layer, rows, slice(-3, None)) == is_worth(layer, rows, torch.zeros(2, 3).long()) == taken
    tiny = next(tiny for tiny in TOKENS if tiny.name == "gpt2")
    model, segment = model_of(tiny), segments(tiny)["full"]
    monkeypatch.setattr("recurrent_memory.backbones.last_layer.WORTH", 1e9)
    whole = flops(model, segment)
    monkeypatch.setattr("recurrent_memory.backbones.last_layer.WORTH", 0)
    assert flops(model, segment) < whole
