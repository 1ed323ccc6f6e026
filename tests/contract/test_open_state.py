"""A cache within the window changes no token and no memory; it changes what is computed: a position for each token."""

from functools import wraps

import pytest
import torch
from torch import Tensor

from contract.backbones import DECODERS, ENCODERS, M, S, Tiny
from contract.cases import assert_close, assert_same_state, backbone_of, batch, copy_of, model_of, text_of, texts_of
from recurrent_memory import GenerationError, MemoryConfig, RecurrentMemoryModel
from recurrent_memory.backbones.decoder import DecoderBackbone
from recurrent_memory.inference.open_state import OpenState

every_decoder = pytest.mark.parametrize("tiny", DECODERS, ids=lambda tiny: tiny.name)
gpt2 = DECODERS[0]
READ, PROMPTS = (0, 3, S, 2 * S + 1), (5, 1, 2, S)


def positions_run(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the positions of each run of the backbone's body."""
    counted: list[int] = []
    body = model.backbone.base_model
    forward = body.forward

    @wraps(forward)
    def counting(*args: object, **kwargs: object) -> object:
        counted.append(kwargs["inputs_embeds"].shape[1])  # type: ignore[union-attr]
        return forward(*args, **kwargs)

    monkeypatch.setattr(body, "forward", counting)
    return counted


@every_decoder
def test_logits_and_states_are_those_of_reading_everything_anew(tiny: Tiny) -> None:
    model = model_of(tiny)
    assert OpenState.is_possible(model)
    state = model.read(*batch(texts_of(tiny, READ), "right"))
    ids, mask = batch(texts_of(tiny, PROMPTS, seed=30), "left")
    opened, plain = OpenState(model, state), state
    tokens = torch.tensor(texts_of(tiny, (S + 2,) * len(READ), seed=60))
    for step in range(S + 3):  # every phase of a segment, the rows at different ones
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask, memory_state=plain, logits_to_keep=1)
        assert_close(opened.read(ids, mask), expected.logits, tiny.tolerance, f"logits {step}")
        assert_same_state(opened.state, expected.memory_state, tiny.tolerance)
        plain, mask, ids = expected.memory_state, None, tokens[:, step : step + 1]


@every_decoder
def test_generation_with_and_without_a_cache_is_the_same(tiny: Tiny) -> None:
    model = model_of(tiny)
    state = model.read(*batch(texts_of(tiny, READ), "right"))
    ids, mask = batch(texts_of(tiny, PROMPTS, seed=30), "left")
    for sampling in ({"do_sample": False}, {"do_sample": True, "top_k": 8, "num_return_sequences": 2}):
        made: list[Tensor] = []
        for use_cache in (True, False):
            torch.manual_seed(4)
            settings = {"max_new_tokens": S + 2, "use_cache": use_cache, **sampling}
            made.append(model.generate(ids, attention_mask=mask, memory_state=state, **settings))
        assert torch.equal(*made)


def test_500_tokens() -> None:
    model, ids = model_of(gpt2), torch.tensor([text_of(gpt2, S + 2)])
    fast, slow = (model.generate(ids, max_new_tokens=500, do_sample=False, use_cache=cache) for cache in (True, False))
    assert fast.shape == (1, S + 502)
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("num_memory_tokens", [0, M])
@pytest.mark.parametrize("kind", ["tokens", "associative", "per-layer"])
def test_a_token_costs_one_position_and_a_fold_the_write_block(
    kind: str, num_memory_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryConfig(num_memory_tokens, S, kind=kind, key_width=4)
    model = RecurrentMemoryModel.from_backbone(backbone_of(gpt2), memory).eval()
    counted = positions_run(model, monkeypatch)
    model.generate(torch.tensor([text_of(gpt2, 1)]), max_new_tokens=3 * S, do_sample=False)
    read = 0 if kind == "associative" else num_memory_tokens
    first = [read + 1] + [1] * (S - 1)
    fold = [num_memory_tokens] if num_memory_tokens else []
    assert counted == (first + fold) * 2 + first
    counted.clear()
    model.generate(torch.tensor([text_of(gpt2, 1)]), max_new_tokens=3, do_sample=False, use_cache=False)
    assert counted == [read + 1, read + 2, read + 3]


def test_an_open_state_goes_on_from_call_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = copy_of(gpt2), text_of(gpt2, S + 2)
    whole = model.generate(torch.tensor([text]), max_new_tokens=2 * S, do_sample=False)
    opened, made = OpenState(model, model.read(torch.tensor([text[:-1]]))), torch.tensor([text[-1:]])
    counted = positions_run(model, monkeypatch)
    for _ in range(2):
        made = torch.cat(
            [made[:, :-1], model.generate(made[:, -1:], memory_state=opened, max_new_tokens=S, do_sample=False)], 1
        )
    assert made[0].tolist() == whole[0, S + 1 :].tolist()
    assert sum(counted) == (M + 2) + (S - 1) + S + 2 * (M + M)  # the prompt's window, the tokens, two folds
    assert_same_state(opened.state, model.read(whole[:, :-1]), 1e-10)
    with pytest.raises(GenerationError, match="memory_state is held open by another model; open it with this one"):
        model_of(gpt2).generate(made[:, -1:], memory_state=opened, max_new_tokens=1)


def test_where_a_cache_cannot_be_used_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(DecoderBackbone):
        """A family that may run its rows in another way."""

    model = copy_of(gpt2)
    room = S + 2 * M
    assert model.view.continued(room) is not None
    assert Other(model.backbone).continued(room) is None
    assert not OpenState.is_possible(model_of(ENCODERS[0]))
    assert not OpenState.is_possible(model.train())  # dropout would draw anew what was computed before
    with pytest.raises(
        GenerationError, match="a GPT2LMHeadModel with a memory of kind 'tokens' in training cannot be held"
    ):
        OpenState(model, model.initial_state())
    model.eval()
    monkeypatch.setattr(model.backbone.base_model, "_is_stateful", True)
    assert not OpenState.is_possible(model)
    monkeypatch.undo()
    ids = torch.tensor([text_of(gpt2, 2 * S)])
    expected = model.generate(ids, max_new_tokens=S, do_sample=False)
    monkeypatch.setattr(type(model.memory), "is_positionwise", False)
    counted = positions_run(model, monkeypatch)
    assert torch.equal(model.generate(ids, max_new_tokens=S, do_sample=False), expected)
    assert max(counted[3:]) > M + 2  # whole windows
