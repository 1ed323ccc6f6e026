"""Generation goes on from what was read: the tokens are those that the oracle finds by computing everything anew."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from contract.backbones import DECODERS, ENCODERS, SEQ2SEQ, VOCAB, S, Tiny
from contract.cases import batch, copy_of, model_of, oracle, oracle_logits, text_of, texts_of
from recurrent_memory import GenerationError, InputError

every_decoder = pytest.mark.parametrize("tiny", DECODERS, ids=lambda tiny: tiny.name)
gpt2 = DECODERS[0]


def ids_of(*texts: list[int]) -> torch.Tensor:
    return torch.tensor(texts, dtype=torch.long)


def by_the_oracle(tiny: Tiny, text: list[int], max_new_tokens: int) -> list[int]:
    model, text = model_of(tiny), list(text)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            text.append(int(oracle_logits(oracle(tiny, model, text))[-1].argmax()))
    return text


@every_decoder
@pytest.mark.parametrize("length", [1, S - 1, 2 * S])
def test_greedy_tokens_are_the_oracles_across_window_ends(tiny: Tiny, length: int) -> None:
    model, text = model_of(tiny), text_of(tiny, length)
    expected = by_the_oracle(tiny, text, S + 4)
    assert model.generate(ids_of(text), max_new_tokens=S + 4, do_sample=False)[0].tolist() == expected
    for read in {length // 2, length - 1} - {0}:
        state = model.read(ids_of(text[:read]))
        out = model.generate(ids_of(text[read:]), memory_state=state, max_new_tokens=S + 4, do_sample=False)
        assert out[0].tolist() == expected[read:]  # prompt and new tokens


@every_decoder
def test_without_a_prompt_it_goes_on_from_what_is_pending(tiny: Tiny) -> None:
    model = model_of(tiny)
    for length in (1, S, S + 1):
        text = text_of(tiny, length)
        out = model.generate(memory_state=model.read(ids_of(text)), max_new_tokens=S + 1, do_sample=False)
        assert out[0].tolist() == by_the_oracle(tiny, text, S + 1)[length:]


@every_decoder
def test_rows_of_a_batch_padded_on_the_left_are_as_if_alone(tiny: Tiny) -> None:
    model = model_of(tiny)
    read, prompts = texts_of(tiny, (0, 3, S, 2 * S + 1)), texts_of(tiny, (5, 1, 2, S), seed=30)
    state = model.read(*batch(read, "right"))
    ids, mask = batch(prompts, "left")
    out = model.generate(ids, attention_mask=mask, memory_state=state, max_new_tokens=S + 1, do_sample=False)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    for row, (text, prompt) in enumerate(zip(read, prompts, strict=True)):
        expected = by_the_oracle(tiny, text + prompt, S + 1)
        assert out[row, ids.shape[1] :].tolist() == expected[len(text) + len(prompt) :]
    pending = model.read(ids, mask, memory_state=state)
    alike = model.generate(memory_state=pending, max_new_tokens=S + 1, do_sample=False)
    assert torch.equal(alike, out[:, ids.shape[1] :])


def test_a_row_that_has_ended_does_not_disturb_the_others() -> None:
    model = model_of(gpt2)
    texts = texts_of(gpt2, (4, 4, 4))
    alone = [by_the_oracle(gpt2, text, 2 * S)[4:] for text in texts]
    end = alone[1][3]
    settings = {"max_new_tokens": 2 * S, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    out = model.generate(ids_of(*texts), **settings)[:, 4:]
    for row, tokens in enumerate(alone):
        kept = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert out[row, : len(kept)].tolist() == kept
        assert not out[row, len(kept) :].any()


def test_several_sequences_are_each_a_continuation() -> None:
    model, text = model_of(gpt2), text_of(gpt2, S + 2)
    state = model.read(ids_of(text[:S], text[:S]))
    torch.manual_seed(0)
    out = model.generate(
        ids_of(text[S:], text[S:]),
        memory_state=state,
        max_new_tokens=S,
        do_sample=True,
        top_k=5,
        num_return_sequences=3,
    )
    assert out.shape == (6, 2 + S)
    assert len({tuple(row) for row in out.tolist()}) > 1
    torch.manual_seed(0)
    whole = model.generate(ids_of(text, text), max_new_tokens=S, do_sample=True, top_k=5, num_return_sequences=3)
    assert torch.equal(whole[:, S:], out)


def test_what_transformers_returns_besides_is_returned_too() -> None:
    model, text = model_of(gpt2), text_of(gpt2, S + 2)
    settings = GenerationConfig(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_scores=True)
    out = model.generate(ids_of(text), generation_config=settings)
    assert out.sequences[0].tolist() == by_the_oracle(gpt2, text, 3)
    assert [int(scores[0].argmax()) for scores in out.scores] == out.sequences[0, -3:].tolist()
    pending = model.generate(memory_state=model.read(ids_of(text)), generation_config=settings)
    assert pending.sequences[0].tolist() == out.sequences[0, -3:].tolist()


def test_tokens_are_streamed_as_they_come() -> None:
    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    model, text = model_of(gpt2), text_of(gpt2, S + 2)
    streamer = Kept()
    out = model.generate(ids_of(text), max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.tokens == [*out[0].tolist(), -1]
    streamer = Kept()
    model.generate(memory_state=model.read(ids_of(text)), max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.tokens == [*out[0, -4:].tolist(), -1]


def test_the_models_own_settings_are_used_and_not_changed() -> None:
    model = copy_of(gpt2)
    model.generation_config.max_new_tokens = 5
    text = text_of(gpt2, 3)
    assert model.generate(ids_of(text), do_sample=False).shape == (1, 8)
    assert model.generate(memory_state=model.read(ids_of(text)), do_sample=False).shape == (1, 5)
    assert model.generation_config.max_new_tokens == 5


# ---------------------------------------------------------------------- encoder–decoders


def test_an_encoder_decoder_answers_from_the_last_segment_and_the_memory() -> None:
    tiny = SEQ2SEQ[0]
    model = model_of(tiny)
    texts = texts_of(tiny, (2, S, 2 * S + 1))
    for row, text in enumerate(texts):
        written = [0]
        with torch.no_grad():
            for _ in range(6):  # labels are what the decoder sees, one step later: the last is a dummy
                logits = oracle(tiny, model, text, [*written[1:], 2]).logits
                written.append(int(logits[-1].argmax()))
        written = written[: written.index(1) + 1] if 1 in written else written
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert model.generate(ids_of(text), **settings)[0].tolist() == written
        assert model.generate(memory_state=model.read(ids_of(text)), **settings)[0].tolist() == written
        ids, mask = batch(texts, "right")
        together = model.generate(ids, attention_mask=mask, **settings)[row].tolist()
        assert together[: len(written)] == written
        assert model.generate(ids_of(text), num_return_sequences=2, max_new_tokens=3, do_sample=True).shape[0] == 2
    with pytest.raises(GenerationError, match="nothing to answer to: give input_ids, or a memory_state"):
        model.generate(max_new_tokens=3)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 3}, "num_beams=3 is not supported: a memory is not reordered between beams; use num_beams=1"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2 is not supported"),
        ({"assistant_model": 1}, "assistant_model is not supported with a recurrent memory; leave it out"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens is not supported"),
        (
            {"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)},
            "prompt_lookup_num_tokens is not supported",
        ),
        ({"inputs_embeds": torch.zeros(1, 2, 16)}, "inputs_embeds is not supported"),
        ({"past_key_values": ()}, "past_key_values is not supported"),
        (
            {"input_ids": torch.zeros(1, 0, dtype=torch.long)},
            "the prompt is empty; give at least one token, or leave it out",
        ),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padded on the right; pad on the left"),
        ({"custom_generate": "someone/else"}, "custom_generate is not supported"),
    ],
)
def test_ways_of_generating_that_a_memory_does_not_support(arguments: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model_of(gpt2).generate(**({"input_ids": ids_of([5, 6, 7]), "max_new_tokens": 2} | arguments))


def test_a_prompt_with_nothing_in_it() -> None:
    model = model_of(gpt2)
    with pytest.raises(
        GenerationError, match="nothing to continue: give a prompt, or a memory_state with text pending"
    ):
        model.generate(max_new_tokens=2)
    with pytest.raises(GenerationError, match="nothing to continue"):
        model.generate(memory_state=model.initial_state(), max_new_tokens=2)
    with pytest.raises(GenerationError, match="nothing to continue"):
        model.generate(memory_state=model.fold(model.read(ids_of([5, 6]))), max_new_tokens=2)
    with pytest.raises(InputError, match="a row of the prompt is empty; every row needs at least one token"):
        model.generate(ids_of([5, 6], [5, 6]), attention_mask=ids_of([1, 1], [0, 0]), max_new_tokens=2)
    with pytest.raises(InputError, match="holds 48, outside the model's vocabulary"):
        model.generate(ids_of([VOCAB]), max_new_tokens=2)


def test_an_encoder_does_not_generate() -> None:
    with pytest.raises(GenerationError, match="an encoder does not generate text; use forward"):
        model_of(ENCODERS[0]).generate(ids_of([5, 6]), max_new_tokens=2)
