"""Compiled layers read what plain ones read."""

import copy
import shutil

import pytest
import torch

from contract.backbones import BACKBONES, S
from contract.cases import assert_same_state, copy_of, text_of
from recurrent_memory import ConfigError
from recurrent_memory.backbones import compiled

has_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is here")


def named(name: str):
    return next(tiny for tiny in BACKBONES if tiny.name == name)


@has_compiler
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("name", ["gpt-neox+sign", "bert-mlm"])
def test_the_same_memory(name: str) -> None:
    tiny = named(name)
    model, ids = copy_of(tiny), torch.tensor([text_of(tiny, 3 * S + 2)])
    plain, with_hidden = model.read(ids), model(ids).memory_state
    model.fast = "compile"
    assert [compiled.is_compiled(layer) for layer in model.view.layers()] == [True] * (len(model.view.layers()) - 1) + [
        False
    ]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_same_state(model.read(ids), plain, tiny.tolerance)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "something was compiled"
    assert_same_state(model(ids).memory_state, with_hidden, tiny.tolerance)
    assert copy.deepcopy(model).fingerprint == model.fingerprint
    model.fast = "auto"
    assert not any(compiled.is_compiled(layer) for layer in model.view.layers())
    assert_same_state(model.read(ids), plain, 0)


def test_what_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy_of(named("gpt2+per-layer"))
    with pytest.raises(ConfigError, match="fast='compile' does not go with kind='per-layer'; take fast='auto'"):
        model.fast = "compile"
    model = copy_of(named("gpt2"))
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", _nothing)
    with pytest.raises(ConfigError, match="needs a C.. compiler on a CPU, and none is here; install g.., or"):
        model.fast = "compile"
    assert model.fast == "auto"


def _nothing() -> str:
    raise torch._inductor.exc.InvalidCxxCompiler
