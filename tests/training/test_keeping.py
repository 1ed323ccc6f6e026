"""The loss that a memory stays as it is: as a graph written for reading has it, by every kind of backpropagation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.cases import assert_close, gradients
from recurrent_memory import MemoryConfig, RecurrentMemoryModel
from recurrent_memory.errors import ConfigError
from recurrent_memory.segments import Segment
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.training.bptt import Backpropagation, backpropagate
from recurrent_memory.training.curriculum import Curriculum, Stage, train_curriculum
from recurrent_memory.training.keeping import Keep, check_keeps
from recurrent_memory.training.task_examples import TaskExamples
from recurrent_memory.training.task_lanes import Carried
from tiny_models import prose, tiny_backbone, tiny_tokenizer
from training.copy_task import arguments

S, WEIGHT = 8, 3.0
LENGTHS = (2 * S + 3, 3 * S + 1, 4 * S + 5, S - 2)
KEPT = torch.tensor([True, False, True, True])
METHODS = [Backpropagation(), Backpropagation("recompute"), Backpropagation("truncated", 9)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(**memory: Any) -> RecurrentMemoryModel:
    config = MemoryConfig(**{"num_memory_tokens": 3, "segment_length": S, **memory})
    return RecurrentMemoryModel.from_backbone(tiny_backbone(0), config).double()


def example() -> dict[str, Tensor]:
    torch.manual_seed(3)
    width = max(LENGTHS)
    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(5, 60, (len(LENGTHS), width))
    labels = torch.full_like(ids, -100)
    for row, length in enumerate(LENGTHS):
        labels[row, length - 1] = ids[row, length - 1]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def kept_of(model: RecurrentMemoryModel, carry: str, hold: float, recent: int) -> Tensor:
    """The loss of memory tokens, row by row, segment by segment; signs are made here, of the hidden states that a model carries."""
    plain = model_of(carry="hidden", recent=recent)
    plain.load_state_dict(model.state_dict())
    for name, parameter in model.named_parameters():
        _put(plain, name, parameter)
    ids, losses = example()["input_ids"], dict[int, list[Tensor]]()
    for row in KEPT.nonzero()[:, 0].tolist():
        state = plain.initial_state(1)
        for index in range(max(LENGTHS[row] - 1, 0) // S):
            before = state.memory
            after = plain.step(Segment.full(ids[row : row + 1, index * S : (index + 1) * S]), state)[1].memory
            written = 3 - recent
            hidden, old = after[:, :written], before[:, :written]
            if carry == "sign":
                losses.setdefault(index, []).append((0.5 - hidden * old.detach().sign()).clamp(min=0).mean())
                pulled = hidden + hold * old
                signs = pulled + (torch.where(pulled < 0, -1.0, 1.0) - pulled).detach()
                after = torch.cat([signs, after[:, written:]], 1)
            else:
                losses.setdefault(index, []).append((hidden - old.detach()).square().mean())
            state = state.folded({"memory": after}, torch.tensor([True]))
    return WEIGHT * torch.stack([torch.stack(of_rows).mean() for of_rows in losses.values()]).mean()


def change_in_layers(before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    """Of a memory in the layers, of one text: layer by layer, number by number."""
    if "layer_memory" in before:
        return (
            sum((after["layer_memory"] - before["layer_memory"].detach()).flatten() ** 2)
            / after["layer_memory"].numel()
        )
    changes = list[Tensor]()
    for old, new, z in zip(before["A"][0].detach(), after["A"][0], after["z"][0].detach(), strict=True):
        least = 0.01 * (sum(z**2) * old.shape[1]) ** 0.5 + 1e-5
        changes.append(sum(((new - old) ** 2).flatten()) ** 0.5 / (sum((old**2).flatten()) ** 0.5 + least))
    return torch.stack(changes).mean()


def kept_in_layers(model: RecurrentMemoryModel) -> Tensor:
    """The loss of a memory in the layers, row by row, segment by segment."""
    ids, losses = example()["input_ids"], dict[int, list[Tensor]]()
    for row in KEPT.nonzero()[:, 0].tolist():
        state = model.initial_state(1)
        for index in range(max(LENGTHS[row] - 1, 0) // S):
            after = model.step(Segment.full(ids[row : row + 1, index * S : (index + 1) * S]), state)[1]
            losses.setdefault(index, []).append(change_in_layers(state.tensors, after.tensors))
            state = after
    return WEIGHT * torch.stack([torch.stack(of_rows).mean() for of_rows in losses.values()]).mean()


def _put(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, parameter)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
@pytest.mark.parametrize(
    ("carry", "hold", "recent"),
    [("sign", 0.0, 0), ("sign", 0.4, 1), ("hidden", 0.0, 1)],
    ids=["sign", "hold", "hidden"],
)
def test_gradients_are_those_of_the_whole_graph(method: Backpropagation, carry: str, hold: float, recent: int) -> None:
    model = model_of(carry=carry, recent=recent, **({"hold": hold} if hold else {}))
    output = model(**example())
    kept = kept_of(model, carry, hold, recent)
    expected = gradients(model, output.loss + kept)
    without = gradients(model, model(**example()).loss)
    model.zero_grad()
    keep = Keep(KEPT, WEIGHT)
    outcome = backpropagate(model, **example(), method=method, keep=keep)
    assert not model.memory.carry._forward_hooks  # nothing is held after the step
    assert_close(outcome.kept, kept, 1e-10, "kept")
    assert_close(outcome.loss, output.loss, 1e-10, "the loss, which it is no part of")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, expected[name], 1e-9, f"gradient of {name}")
    name = "memory.initial_memory"
    assert float((expected[name] - without[name]).abs().max()) > 1e-3  # or the comparison would say nothing


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
@pytest.mark.parametrize("kind", ["associative", "per-layer"])
def test_gradients_of_what_layers_keep_are_those_of_the_whole_graph(method: Backpropagation, kind: str) -> None:
    model = model_of(kind=kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.memory.named_parameters():
            if name in ("value", "rate_bias"):
                parameter.normal_(std=0.3)  # zeros at first: nothing would be written
    output = model(**example())
    kept = kept_in_layers(model)
    expected = gradients(model, output.loss + kept)
    without = gradients(model, model(**example()).loss)
    model.zero_grad()
    outcome = backpropagate(model, **example(), method=method, keep=Keep(KEPT, WEIGHT))
    assert_close(outcome.kept, kept, 1e-10, "kept")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, expected[name], 1e-9, f"gradient of {name}")
    name = "memory.write_tokens"
    assert float((expected[name] - without[name]).abs().max()) > 1e-3  # or the comparison would say nothing


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
@pytest.mark.parametrize(
    "settings",
    [{"carry": "sign", "hold": 0.4, "recent": 1}, {"carry": "hidden"}, {"kind": "associative"}],
    ids=["hold", "hidden", "associative"],
)
def test_a_text_with_two_questions_keeps_as_if_read_for_each(method: Backpropagation, settings: dict[str, Any]) -> None:
    model = model_of(**settings)
    torch.manual_seed(1)
    with torch.no_grad():
        if "kind" in settings:
            model.memory.value.normal_(std=0.3)
    ids = example()["input_ids"][:2].repeat_interleave(2, 0)
    breaks = torch.tensor([2 * S + 1, 2 * S + 1, S, S])
    ids[1::2, -1] += 1  # another question, to which the last token is the answer
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    state = model.read(ids[:, :S])
    keep = Keep(torch.tensor([True, True, False, False]), WEIGHT)
    found: list[tuple[Any, dict[str, Any]]] = []
    for texts in (None, torch.tensor([4, 4, 9, 9])):
        model.zero_grad()
        outcome = backpropagate(
            model, ids, labels, None, model.fold(state), breaks, texts, method=method, keep=keep, num_items_in_batch=1
        )
        found.append((outcome, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients_of_each), (shared, actual) = found
    assert float(expected.kept) > 0
    assert_close(shared.kept, expected.kept, 1e-10, "kept")
    assert_close(shared.loss, expected.loss, 1e-10, "loss")
    assert actual.keys() == gradients_of_each.keys()
    for name, gradient in gradients_of_each.items():
        assert_close(actual[name], gradient, 1e-9, f"gradient of {name}")


def test_an_associative_memory_that_writes_nothing_yet_has_gradients() -> None:
    model = model_of(kind="associative")  # W_v is 0: a norm of nothing but zeros
    outcome = backpropagate(model, **example(), method=Backpropagation(), keep=Keep(KEPT, WEIGHT))
    assert float(outcome.kept) == 0.0
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_no_rows_to_keep_are_no_loss() -> None:
    model = model_of()
    outcome = backpropagate(
        model, **example(), method=Backpropagation(), keep=Keep(torch.zeros(4, dtype=torch.bool), WEIGHT)
    )
    assert float(outcome.kept) == 0.0
    assert torch.isfinite(outcome.loss)


def changes_after(out: Path, keep: float) -> list[float]:
    """Of a model trained on carried lanes the change of its memory over the last segments, segment by segment."""
    model = RecurrentMemoryModel.from_backbone(tiny_backbone(0), MemoryConfig(num_memory_tokens=2, segment_length=32))
    noise = [[prose(600, seed=1)], [prose(900, seed=3)]]
    examples = TaskExamples((load_task("detect"),), noise, tiny_tokenizer(), 32, partial=0.0)
    stage = Stage(
        2, 30, learning_rate=1e-2, carried=Carried(1e9, drop_lost=False, first_segments=2, spread=False, keep=keep)
    )
    args = arguments(out, eval_steps=30, logging_steps=5)
    train_curriculum(model, args, examples=examples, curriculum=Curriculum((stage,)), num_eval_examples=2)
    ids = torch.tensor([examples.begin(random.Random(0), 64, lambda n: [0] * n)[0].slice(0, 256).tolist()])
    state, changes = model.initial_state(1), list[float]()
    with torch.no_grad():
        for segment in ids.split(32, 1):
            after = model.step(Segment.full(segment), state)[1]
            changes.append(float((after.memory - state.memory).square().mean()))
            state = after
    return changes[2:]


def logged(folder: Path) -> list[dict[str, float]]:
    """The log of the only stage."""
    (path,) = folder.rglob("checkpoint-30/trainer_state.json")
    return json.loads(path.read_text())["log_history"]


def test_lanes_learn_to_keep(tmp_path: Path) -> None:
    without, kept = (changes_after(tmp_path / str(keep), keep) for keep in (0.0, 30.0))
    assert sum(kept) < 0.5 * sum(without)
    rows = [row for row in logged(tmp_path / "30.0") if "loss" in row]
    assert rows[-1]["kept"] < 0.5 * rows[1]["kept"]
    assert not any("kept" in row for row in logged(tmp_path / "0.0"))


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(ConfigError, match=r"keep=-1.0 of carried lanes must be at least 0"):
        Carried(keep=-1.0)
    with pytest.raises(
        ConfigError, match="keep is for memory tokens that the model writes.*with 0 of them: leave it out"
    ):
        check_keeps(model_of(recent=3))
