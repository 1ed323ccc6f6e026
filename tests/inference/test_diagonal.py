"""The diagonal schedule computes what one segment after the other computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from contract.backbones import DECODERS, ENCODERS, VOCAB, M, S, Tiny
from contract.cases import (
    assert_close,
    assert_identical,
    assert_same_state,
    batch,
    batch_labels,
    copy_of,
    gradients,
    labels_of,
    model_of,
    text_of,
    texts_of,
    weights_like,
)
from recurrent_memory import ConfigError, MemoryConfig, MemoryReader, RecurrentMemoryModel
from recurrent_memory.inference import schedule as schedules
from recurrent_memory.inference.diagonal import Diagonals
from recurrent_memory.inference.grouped_attention import GroupedAttention
from recurrent_memory.segments import Segment

LAYERWISE = [tiny for tiny in [*DECODERS, *ENCODERS] if tiny.is_layerwise]
every_backbone = pytest.mark.parametrize("tiny", LAYERWISE, ids=lambda tiny: tiny.name)
LENGTHS = (0, 1, S, S + 1, 4 * S + 2, 7 * S)  # rows of 0 to 6 full segments, over 2 or 3 layers


def named(name: str) -> Tiny:
    return next(tiny for tiny in [*DECODERS, *ENCODERS] if tiny.name == name)


gpt2 = named("gpt2+per-layer")
one_of_each = pytest.mark.parametrize(
    "tiny", [gpt2, named("gpt2+associative"), named("bert-mlm+per-layer")], ids=lambda tiny: tiny.name
)


@contextmanager
def counted(model: RecurrentMemoryModel) -> Iterator[list[int]]:
    """The numbers of the layers that are called, in order."""
    calls: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        for number, layer in enumerate(model.view.layers())
    ]
    yield calls
    for handle in handles:
        handle.remove()


# ---------------------------------------------------------------------- it computes the same


@every_backbone
def test_outputs_states_and_gradients_are_those_of_one_segment_after_the_other(tiny: Tiny) -> None:
    model, texts = copy_of(tiny), texts_of(tiny, LENGTHS)
    labels = batch_labels(tiny, labels_of(tiny, texts), "right")
    ids, mask = batch(texts, "right")
    outputs, slopes = [], []
    for schedule in ("sequential", "diagonal"):
        output = model(input_ids=ids, attention_mask=mask, labels=labels, schedule=schedule)
        kept = [tensor for _, tensor in sorted(output.memory_state.tensors.items())]
        objective = sum((t * weights_like(t, index)).sum() for index, t in enumerate([output.logits, *kept]))
        slopes.append(gradients(model, output.loss + objective))
        outputs.append(output)
    assert_close(outputs[1].logits, outputs[0].logits, tiny.tolerance, "logits")
    assert_close(outputs[1].loss, outputs[0].loss, tiny.tolerance, "loss")
    assert_same_state(outputs[1].memory_state, outputs[0].memory_state, tiny.tolerance)
    for name, gradient in slopes[0].items():
        assert_close(slopes[1][name], gradient, tiny.tolerance, f"gradient of {name}")
    assert float(slopes[0]["memory.write_tokens"].abs().max()) > 1e-3  # or the comparison would say nothing


@every_backbone
def test_reading_goes_on_from_any_state(tiny: Tiny) -> None:
    model = copy_of(tiny)
    first, more = batch(texts_of(tiny, LENGTHS), "left"), batch(texts_of(tiny, LENGTHS[::-1], seed=50), "right")
    states = []
    for schedule in ("sequential", "diagonal"):
        state = model.read(*first, schedule=schedule)
        states.append(model.read(*more, memory_state=state, schedule=schedule))
    assert_same_state(states[1], states[0], tiny.tolerance)
    assert not any(tensor.requires_grad for tensor in states[1].tensors.values())


@one_of_each
@pytest.mark.parametrize("lengths", [[[S, 3], [2, S], [5, 5]], [[4, 4]] * 3])
def test_segments_that_are_not_full(tiny: Tiny, lengths: list[list[int]]) -> None:
    model = copy_of(tiny)
    ids = torch.tensor([text_of(tiny, 3 * S), text_of(tiny, 3 * S, seed=1)])
    segments = [Segment(ids[:, i * S : (i + 1) * S], torch.tensor(lengths[i])) for i in range(3)]
    with torch.no_grad():
        expected, tensors = [], model.memory.initial(2)
        for segment in segments:
            hidden, tensors = model.memory.fold(model.view, segment, tensors)
            expected.append(hidden)
        folding = Diagonals(model.view, model.memory).fold(
            [(segment, None) for segment in segments], model.memory.initial(2), with_hidden=True
        )
        for index, hidden in enumerate(expected):
            actual, _ = next(folding)
            for row, length in enumerate(lengths[index]):
                assert_close(actual[row, :length], hidden[row, :length], 1e-10, f"segment {index}")
        with pytest.raises(StopIteration) as end:
            next(folding)
    for name, tensor in tensors.items():
        assert_close(end.value.value[name], tensor, 1e-10, name)


def test_an_adapter_in_the_layers_is_run_and_trained() -> None:
    model = copy_of(gpt2)
    model.add_peft_adapter(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ids = torch.tensor([text_of(gpt2, 4 * S)])
    slopes = [gradients_of_trained(model, model(ids, labels=ids, schedule=s).loss) for s in ("sequential", "diagonal")]
    assert sum("lora" in name for name in slopes[0]) == 4
    for name, gradient in slopes[0].items():
        assert_close(slopes[1][name], gradient, 1e-10, name)
        assert bool(gradient.any()), name


def gradients_of_trained(model: RecurrentMemoryModel, loss: Tensor) -> dict[str, Tensor]:
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# ---------------------------------------------------------------------- in fewer calls, with the weights there once


def test_a_diagonal_is_one_call() -> None:
    model, num_segments = copy_of(gpt2), 5
    ids = torch.tensor([text_of(gpt2, num_segments * S + 1)])
    with torch.no_grad():
        model.read(ids, schedule="diagonal")  # in which the stacks are made, and looked at
    with counted(model) as calls:
        model.read(ids, schedule="sequential")
        assert calls == [0, 1] * num_segments
        calls.clear()
        model.read(ids, schedule="diagonal")
    # Entering a segment calls stand-ins of both layers; then 0 alone, four times both in one call of 0, 1 alone.
    assert len(calls) == 2 * num_segments + num_segments + 1


def test_the_weights_are_there_once() -> None:
    model = copy_of(gpt2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.read(torch.tensor([text_of(gpt2, 3 * S)]), schedule="diagonal")
    layers = model.view.layers()
    for name, parameter in layers[0].named_parameters():
        other = layers[1].get_parameter(name)
        assert parameter.untyped_storage().data_ptr() == other.untyped_storage().data_ptr(), name
        assert parameter.untyped_storage().nbytes() == 2 * parameter.numel() * parameter.element_size(), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_step_of_an_optimizer_is_seen() -> None:
    model, ids = copy_of(gpt2), torch.tensor([text_of(gpt2, 4 * S)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids, schedule="diagonal").loss.backward()
    before = model.read(ids, schedule="diagonal")
    optimizer.step()
    model.reset_fingerprint()
    after = model.read(ids, schedule="diagonal")
    assert_same_state(after, model.read(ids), 1e-10)
    assert not torch.allclose(after.tensors["layer_memory"], before.tensors["layer_memory"], atol=1e-3)


def test_saving_copying_and_another_dtype(tmp_path: Path) -> None:
    model, ids = copy_of(gpt2), torch.tensor([text_of(gpt2, 4 * S)])
    plain = copy_of(gpt2)
    state = model.read(ids, schedule="diagonal")
    model.save_pretrained(tmp_path / "stacked")
    plain.save_pretrained(tmp_path / "plain")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stacked", "plain")]
    assert weights[0] == weights[1]
    loaded = RecurrentMemoryModel.from_pretrained(tmp_path / "stacked", dtype=torch.float64)
    assert_identical(loaded.read(ids, schedule="diagonal"), state)
    single = model.float()  # every parameter in memory of its own again
    assert_same_state(single.read(ids, schedule="diagonal"), single.read(ids), 1e-5)


# ---------------------------------------------------------------------- reading files on diagonals


def test_a_reader_keeps_to_its_schedule_when_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy_of(gpt2)
    text, out = text_of(gpt2, 41 * S), tmp_path / "state.safetensors"
    whole = MemoryReader(model, tokens_per_block=8 * S, schedule="diagonal").read(iter(text))
    read, schedules_seen = model.read, []

    def watched(ids: Tensor, memory_state: object, schedule: str) -> object:
        schedules_seen.append(schedule)
        if len(schedules_seen) == 3:
            raise KeyboardInterrupt
        return read(ids, memory_state=memory_state, schedule=schedule)

    monkeypatch.setattr(model, "read", watched)
    with pytest.raises(KeyboardInterrupt, match="go on with the same command and --resume"):
        MemoryReader(model, tokens_per_block=8 * S, schedule="diagonal").read(iter(text), out=out)
    resumed = MemoryReader(model, tokens_per_block=8 * S).read(iter(text), out=out, resume=True)
    assert_identical(resumed, whole)
    assert set(schedules_seen) == {"diagonal"}
    assert_same_state(resumed, read(torch.tensor([text])), gpt2.tolerance)


def test_a_reader_measures_once_which_schedule_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy_of(gpt2)
    monkeypatch.setattr(schedules, "_measure", lambda *_: (1.0, 0.5))
    assert schedules.chosen_schedule(model, "auto", 8) == "diagonal"
    assert schedules.chosen_schedule(model, "auto", 1) == "sequential"
    assert schedules.chosen_schedule(copy_of(named("gpt2")), "auto", 8) == "sequential"
    with pytest.raises(ConfigError, match="schedule='sideways' is not a schedule; choose one of auto, sequential"):
        MemoryReader(model, schedule="sideways")


def test_a_reader_takes_the_faster_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, measured = copy_of(gpt2), []
    monkeypatch.setattr(schedules, "_measure", lambda *_: measured.append(1) or (1.0, 0.5))
    read, seen = model.read, []

    def watched(ids: Tensor, memory_state: object, schedule: str) -> object:
        seen.append(schedule)
        return read(ids, memory_state=memory_state, schedule=schedule)

    monkeypatch.setattr(model, "read", watched)
    text = text_of(gpt2, 20 * S)
    MemoryReader(model, tokens_per_block=8 * S).read(iter(text[: 8 * S - 1]))
    assert (seen, measured) == (["sequential"], []), "a text that is shorter than a block is not worth a measurement"
    seen.clear()
    state = MemoryReader(model, tokens_per_block=8 * S).read(iter(text))
    assert (seen, measured) == (["diagonal"] * 3, [1])
    assert_same_state(state, read(torch.tensor([text])), gpt2.tolerance)
    seen.clear()
    MemoryReader(model, tokens_per_block=8 * S, schedule="sequential").read(iter(text))
    assert (seen, measured) == (["sequential"] * 3, [1])


# ---------------------------------------------------------------------- which schedule


def test_auto_takes_what_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    model, measured = copy_of(gpt2), []
    monkeypatch.setattr(schedules, "_measure", lambda *_: measured.append(1) or (1.0, 0.8))
    for num_segments, is_diagonal in ((1, False), (4, False), (5, True), (50, True)):  # 0.8 · (N + 1) < N from 5 on
        state = model.initial_state()
        assert (schedules.diagonals_for(model, "auto", 1, num_segments, state.tensors) is not None) is is_diagonal, (
            num_segments
        )
    assert measured == [1]
    schedules.diagonals_for(model, "auto", 2, 5, model.initial_state(2).tensors)
    assert measured == [1, 1]


@one_of_each
def test_auto_measures_and_reads(tiny: Tiny) -> None:
    model = copy_of(tiny)
    ids = torch.tensor([text_of(tiny, 6 * S)])
    random = torch.random.get_rng_state()
    assert_same_state(model.read(ids, schedule="auto"), model.read(ids), tiny.tolerance)
    assert torch.equal(torch.random.get_rng_state(), random)


def by_its_number() -> RecurrentMemoryModel:
    """Layers that are built alike and compute by their number."""
    model = copy_of(gpt2)
    for number, layer in enumerate(model.view.layers()):
        layer.register_forward_hook(lambda _, __, output, number=number: output * (1 + number))
    return model


def checkpointed() -> RecurrentMemoryModel:
    model = copy_of(gpt2).train()
    model.backbone.activation_checkpointing_enable()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: model_of(named("gpt2")),
            "wants a memory that every layer keeps for itself; with kind='tokens' the first",
        ),
        (
            lambda: copy_of(gpt2, num_memory_tokens=0),
            "wants num_memory_tokens of at least 1; take schedule='sequential'",
        ),
        (checkpointed, "does not go with gradient checkpointing of layers; take schedule='sequential', or"),
        (by_its_number, "layer 1 of GPT2LMHeadModel computes something else together with other layers than alone"),
    ],
    ids=["tokens", "no-memory", "checkpointing", "by-its-number"],
)
def test_what_has_no_diagonals_says_so_and_auto_goes_on_without(make, message: str) -> None:
    model, ids = make(), torch.tensor([text_of(gpt2, 3 * S)])
    with pytest.raises(ConfigError, match=f"^schedule='diagonal'.*{message}") as error:
        model.read(ids, schedule="diagonal")
    assert "\n" not in str(error.value)
    assert_same_state(model.read(ids, schedule="auto"), model.read(ids), 0.0)


def test_a_schedule_that_is_none() -> None:
    with pytest.raises(
        ConfigError, match="schedule='zigzag' is not a schedule; choose one of auto, sequential, diagonal"
    ):
        model_of(gpt2).read(torch.tensor([[5, 6]]), schedule="zigzag")


def test_layers_of_several_kinds_are_a_stack_for_each_kind() -> None:
    config = hf.Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=4, sliding_window=40, max_position_embeddings=40,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = RecurrentMemoryModel.from_backbone(hf.Gemma3ForCausalLM(config), MemoryConfig(M, S, kind="per-layer"))
    model = model.double().eval()
    ids = torch.tensor([text_of(gpt2, 9 * S)])
    assert_same_state(model.read(ids, schedule="diagonal"), model.read(ids), 1e-6)
    layers = model.view.layers()
    storages = [layer.self_attn.q_proj.weight.untyped_storage().data_ptr() for layer in layers]
    assert storages[0] == storages[1] == storages[3] != storages[2] == storages[4]


@pytest.mark.parametrize("shape", [None, (5, 5), (1, 1, 5, 5), (2, 1, 5, 5), (2, 4, 5, 5)], ids=str)
@pytest.mark.parametrize("is_each_its_own", [True, False])
def test_attention_of_several_layers_is_theirs_one_by_one(shape: tuple[int, ...] | None, is_each_its_own: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 3, 2, 4, 5, 8, dtype=torch.float64, generator=generator)
    mask = None
    if shape is not None:
        mask = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
        mask = mask if is_each_its_own else mask[0]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = mask) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with GroupedAttention():
        if mask is not None and is_each_its_own:
            together = torch.vmap(attend)(query, key, value, mask)
        else:
            together = torch.vmap(attend)(query, key, value)
    for layer in range(3):
        own = mask[layer] if mask is not None and is_each_its_own else mask
        assert_close(together[layer], attend(query[layer], key[layer], value[layer], own), 1e-12)
