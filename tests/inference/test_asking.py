"""Questions: what greedy decoding gives one at a time, batched, without changing the state."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recurrent_memory import (
    ConfigError,
    GenerationError,
    InputError,
    MemoryState,
    RecurrentMemoryModel,
    StateModelMismatchError,
)
from recurrent_memory.inference.asking import Answer, ask
from tiny_models import S, prose, tiny_model, tiny_tokenizer

QUESTIONS = ["Where is Mary?", "John", "Sandra went to", " Zoë"]


@pytest.fixture
def model() -> RecurrentMemoryModel:
    return tiny_model()


def read(model: RecurrentMemoryModel, *texts: str) -> MemoryState:
    return MemoryState.cat([model.read(tiny_tokenizer()(text, return_tensors="pt").input_ids) for text in texts])


@torch.no_grad()
def slowly(model: RecurrentMemoryModel, state: MemoryState, question: str, max_new_tokens: int = 16) -> Answer:
    """The plainest loop: the whole question and answer anew for each token, one row, probabilities multiplied."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    answer: list[int] = []
    probability = 1.0
    while len(answer) < max_new_tokens:
        logits = model(input_ids=torch.tensor([ids + answer]), memory_state=model.fold(state)).logits[0, -1]
        distribution = torch.softmax(logits.double(), -1)
        token = int(distribution.argmax())
        piece = tokenizer.decode([token])
        if token == tokenizer.eos_token_id or ("\n" in piece and not piece.partition("\n")[0].strip()):
            probability = probability if answer else float(distribution.max())
            break
        answer.append(token)
        probability *= float(distribution.max())
        if "\n" in piece:
            break
    return Answer(question, tokenizer.decode(answer).partition("\n")[0].strip(), probability, tuple(answer))


def assert_same(found: Answer, expected: Answer) -> None:
    assert (found.question, found.text, found.token_ids) == (expected.question, expected.text, expected.token_ids)
    assert math.isclose(found.probability, expected.probability, rel_tol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_those_of_the_plainest_loop(seed: int) -> None:
    model = tiny_model(seed)
    state = read(model, prose(20, seed))
    for found, question in zip(ask(model, tiny_tokenizer(), state, QUESTIONS), QUESTIONS, strict=True):
        assert_same(found, slowly(model, state, question))


def test_one_question_to_every_text_and_each_its_own(model: RecurrentMemoryModel) -> None:
    state = read(model, prose(20, 1), prose(9, 2), prose(3, 3), prose(30, 4))
    for row, found in enumerate(ask(model, tiny_tokenizer(), state, ["Where is Mary?"])):
        assert_same(found, slowly(model, state[row], "Where is Mary?"))
    for row, found in enumerate(ask(model, tiny_tokenizer(), state, QUESTIONS)):
        assert_same(found, slowly(model, state[row], QUESTIONS[row]))


def test_asking_before_any_text(model: RecurrentMemoryModel) -> None:
    state = model.initial_state()
    (found,) = ask(model, tiny_tokenizer(), state, "Where is Mary?")
    assert_same(found, slowly(model, state, "Where is Mary?"))


def test_asking_changes_nothing(model: RecurrentMemoryModel) -> None:
    state = read(model, prose(20))
    before = state.clone()
    model.train()
    first = ask(model, tiny_tokenizer(), state, QUESTIONS)
    assert model.training
    assert first == ask(model, tiny_tokenizer(), state, QUESTIONS)
    assert torch.equal(before.memory, state.memory)
    assert torch.equal(before.pending, state.pending)


def test_no_questions(model: RecurrentMemoryModel) -> None:
    assert ask(model, tiny_tokenizer(), model.initial_state(), []) == []


class Scripted:
    """Makes the model's head prefer given tokens, one after another, row by row."""

    def __init__(self, model: RecurrentMemoryModel, rows: list[list[int]], probability: float) -> None:
        self.model, self.rows, self.probability = model, rows, probability
        self.step = 0
        self.going = list(range(len(rows)))

    def __call__(self, **kwargs: Any) -> Any:
        out = RecurrentMemoryModel.forward(self.model, **kwargs)
        if self.step:
            self.going = [row for row in self.going if self.step < len(self.rows[row])]
        rest = math.log((1 - self.probability) / (out.logits.shape[-1] - 1))
        logits = torch.full_like(out.logits, rest)
        assert logits.shape[0] == len(self.going)
        for position, row in enumerate(self.going):
            logits[position, -1, self.rows[row][self.step]] = math.log(self.probability)
        self.step += 1
        out.logits = logits
        return out


def scripted(
    model: RecurrentMemoryModel, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[Answer]:
    script = Scripted(model, answers, 0.5)
    monkeypatch.setattr(model, "forward", script)
    return ask(model, tiny_tokenizer(), model.initial_state(), QUESTIONS[: len(answers)], **options)


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


def test_where_answers_end(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    eos, newline = 0, ids_of("\n")
    assert len(newline) == 1
    garden, kitchen = ids_of(" the garden"), ids_of(" kitchen")
    found = scripted(model, [[*garden, eos], [*kitchen, *newline], [eos], [*newline]], monkeypatch)
    assert [answer.text for answer in found] == ["the garden", "kitchen", "", ""]
    assert [answer.token_ids for answer in found] == [tuple(garden), tuple(kitchen), (), ()]
    expected = [0.5 ** len(garden), 0.5 ** len(kitchen), 0.5, 0.5]
    assert [answer.probability for answer in found] == pytest.approx(expected)


def test_a_token_that_ends_the_line_in_its_middle(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["?\n"])
    token = tokenizer.convert_tokens_to_ids("?\n")
    monkeypatch.setattr(model, "forward", Scripted(model, [[*ids_of(" garden"), token]], 0.5))
    (found,) = ask(model, tokenizer, model.initial_state(), ["Where?"])
    assert found.text == "garden?"
    assert found.token_ids[-1] == token


def test_the_longest_answer(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = scripted(model, [ids_of("garden" * 30)], monkeypatch, max_new_tokens=3)
    assert len(found.token_ids) == 3


def test_a_question_as_long_as_a_segment_and_an_answer_after_it(model: RecurrentMemoryModel) -> None:
    question = tiny_tokenizer().decode([50 + i for i in range(S)])
    question = question if len(ids_of(question)) == S else "a b c d e f g h "[:S]
    assert len(ids_of(question)) <= S
    state = read(model, prose(10))
    (found,) = ask(model, tiny_tokenizer(), state, [question])
    assert_same(found, slowly(model, state, question))


@pytest.mark.parametrize("question", ["", "  ", "\n"])
def test_an_empty_question(model: RecurrentMemoryModel, question: str) -> None:
    with pytest.raises(InputError, match=r'^the question is empty; ask something, such as "Where is Mary\?"$'):
        ask(model, tiny_tokenizer(), model.initial_state(), [question])


def test_a_question_longer_than_a_segment(model: RecurrentMemoryModel) -> None:
    question = "Where is Mary? " * 10
    with pytest.raises(InputError) as error:
        ask(model, tiny_tokenizer(), model.initial_state(), ["Where?", question])
    assert str(error.value) == (
        f"the question has {len(ids_of(question))} tokens, more than a segment of this model holds (16); ask a shorter one, or "
        "read it with the text (`rmt read QUESTION.txt --append-to STATE`)"
    )


def test_questions_that_do_not_fit_the_texts(model: RecurrentMemoryModel) -> None:
    with pytest.raises(InputError) as error:
        ask(model, tiny_tokenizer(), model.initial_state(3), ["Where?", "Who?"])
    assert str(error.value) == (
        "2 questions for a state of 3 texts; ask all texts one question, or each its own, or choose a text: state[0]"
    )


@pytest.mark.parametrize("max_new_tokens", [0, -1, 1.0])
def test_the_length_of_an_answer_out_of_range(model: RecurrentMemoryModel, max_new_tokens: Any) -> None:
    with pytest.raises(ConfigError, match="must be an int of at least 1"):
        ask(model, tiny_tokenizer(), model.initial_state(), ["Where?"], max_new_tokens=max_new_tokens)


def test_a_state_of_another_model(model: RecurrentMemoryModel) -> None:
    state = tiny_model(seed=1).initial_state()
    object.__setattr__(state, "fingerprint_source", "0" * 32)
    with pytest.raises(StateModelMismatchError):
        ask(model, tiny_tokenizer(), state, ["Where?"])


def test_logits_that_are_not_numbers(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**kwargs: Any) -> Any:
        out = RecurrentMemoryModel.forward(model, **kwargs)
        out.logits = out.logits * float("nan")
        return out

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(GenerationError, match="logits are NaN or infinite"):
        ask(model, tiny_tokenizer(), model.initial_state(), ["Where?"])


def test_an_encoder_is_not_asked() -> None:
    from transformers import BertConfig, BertForMaskedLM

    from recurrent_memory import MemoryConfig

    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    memory = MemoryConfig(num_memory_tokens=2, segment_length=8)
    encoder = RecurrentMemoryModel.from_backbone(BertForMaskedLM(config).eval(), memory, cls_token_id=1, sep_token_id=2)
    with pytest.raises(GenerationError, match="a model of the family 'encoder' is not asked in words"):
        ask(encoder, tiny_tokenizer(), encoder.initial_state(), ["Where?"])


def test_a_classifier_answers_with_the_name_of_the_likeliest_class(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from recurrent_memory import MemoryConfig

    torch.manual_seed(0)
    names = {0: "garden", 1: "kitchen", 2: "office"}
    config = BertConfig(
        vocab_size=320,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    memory = MemoryConfig(num_memory_tokens=2, segment_length=8)
    made = RecurrentMemoryModel.from_backbone(
        BertForSequenceClassification(config).eval().double(), memory, cls_token_id=1, sep_token_id=2
    )
    made.save_pretrained(tmp_path)
    classifier = RecurrentMemoryModel.from_pretrained(tmp_path).eval()
    texts = [tiny_tokenizer()(prose(3, seed), return_tensors="pt").input_ids[:, :21] for seed in range(6)]
    state = MemoryState.cat([classifier.read(ids).trimmed() for ids in texts])
    answers = ask(classifier, tiny_tokenizer(), state, ["Where is Mary?", *["Where?"] * 5])
    for row, answer in enumerate(answers):
        question = tiny_tokenizer()(answer.question, return_tensors="pt").input_ids
        folded = classifier.fold(classifier.read(texts[row]))
        chances = classifier(question, memory_state=folded).logits.detach().softmax(-1)[0]
        assert answer.text == names[int(chances.argmax())]
        assert answer.probability == pytest.approx(float(chances.max()), abs=1e-6)
        assert answer.token_ids == ()
    assert len({round(answer.probability, 4) for answer in answers}) == len(answers)


def test_ids_stay_tensors_on_the_models_device(model: RecurrentMemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def looking(**kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"])
        return RecurrentMemoryModel.forward(model, **kwargs)

    monkeypatch.setattr(model, "forward", looking)
    ask(model, tiny_tokenizer(), model.initial_state(), QUESTIONS[:2])
    assert all(ids.device == model.device and ids.dtype == torch.long for ids in seen)
