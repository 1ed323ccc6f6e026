"""An example of a task is a text of its length with the facts in it, and the question in a segment of its own."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from recurrent_memory.errors import ConfigError
from recurrent_memory.inference.asking import question_ids
from recurrent_memory.models import load_model
from recurrent_memory.tasks.babi.relations import OPPOSITES
from recurrent_memory.tasks.base import Placement, Sample
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.tasks.whereabouts import PEOPLE
from recurrent_memory.training.examples import DrawnBatches, collate, held_out
from recurrent_memory.training.task_examples import TaskExamples, answers_of
from tiny_models import S, prose, tiny_model, tiny_tokenizer

PLAIN = [["Words went by in rows of six. " * 200]]
NOISE = [[prose(60, seed=1), prose(5, seed=2)], [prose(200, seed=3)]]


def examples(*names: str, **settings: Any) -> TaskExamples:
    return TaskExamples(tuple(map(load_task, names)), NOISE, tiny_tokenizer(), 4 * S, **settings)


def test_the_text_is_so_many_segments_and_the_question_comes_after() -> None:
    made, tokenizer = examples("detect", partial=0.0), tiny_tokenizer()
    for number in (1, 3):
        example = made.draw(random.Random(number), number)
        length = example["text_length"]
        assert length == number * 4 * S
        labels = example["labels"]
        assert isinstance(labels, list)
        answered = [index for index, label in enumerate(labels) if label != -100]
        assert [labels[index] for index in answered] == [example["input_ids"][index] for index in answered]
        assert answered == list(range(answered[0], len(labels)))
        question = tokenizer.decode(example["input_ids"][length : answered[0]])
        assert example["input_ids"][length : answered[0]] == question_ids(tiny_model(), tokenizer, question)
        answer = tokenizer.decode(example["input_ids"][answered[0] : -1])
        person = question.removeprefix("Where is ").removesuffix("?")
        text = tokenizer.decode(example["input_ids"][:length])
        assert f"{person} " in text
        assert f"the{answer}." in text
        assert example["input_ids"][-1] == tokenizer.eos_token_id


def test_some_texts_end_inside_a_segment() -> None:
    made = examples("memorize", partial=0.5)
    lengths = [made.draw(random.Random(seed), 2)["text_length"] for seed in range(40)]
    assert all(4 * S < length <= 8 * S for length in lengths)
    assert 8 <= sum(length < 8 * S for length in lengths) <= 32


def test_classes_are_the_answers_of_all_tasks() -> None:
    made = examples("detect", "qa5", form="class", partial=0.0)
    assert made.classes == answers_of([load_task("detect"), load_task("qa5")])
    assert len(set(made.classes)) == len(made.classes)
    kinds = set[bool]()
    for seed in range(20):
        example = made.draw(random.Random(seed), 6)
        label = example["labels"]
        assert isinstance(label, int)
        question = tiny_tokenizer().decode(example["input_ids"][example["text_length"] :])
        kinds.add("Where" in question)
        assert ("Where" in question) == (made.classes[label] in (load_task("detect").answers or ()))
    assert kinds == {True, False}


def test_an_example_of_several_tasks_says_of_which_it_is_and_is_the_same_otherwise() -> None:
    several, one = examples("detect", "memorize"), examples("detect")
    assert several.task_names == ("detect", "memorize")
    drawn = [several.draw(random.Random(seed), 2) for seed in range(40)]
    assert set(Counter(example.get("task") for example in drawn)) == {"detect", "memorize"}
    assert "task" not in one.draw(random.Random(0), 2)
    for example in drawn:
        if example.get("task") == "memorize":
            beginning = tiny_tokenizer().decode(example["input_ids"][: 2 * S])
            assert beginning.split()[0] in PEOPLE, "the fact stands first"


def test_a_decoder_of_its_own_gets_the_answer_alone() -> None:
    example = examples("detect", form="target").draw(random.Random(0), 2)
    labels = example["labels"]
    assert isinstance(labels, list)
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(labels[:-1]) in (load_task("detect").answers or ())
    assert labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example["input_ids"]).endswith("?")


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    made = examples("qa1", "qa2")
    assert made.draw(random.Random(7), 8) == made.draw(random.Random(7), 8)
    assert made.draw(random.Random(7), 8) != made.draw(random.Random(8), 8)


def test_a_batch_says_where_the_questions_begin() -> None:
    made = examples("detect", partial=1.0)
    drawn = [made.draw(random.Random(seed), 2) for seed in range(3)]
    batch = collate(drawn)
    assert batch["text_lengths"].tolist() == [example["text_length"] for example in drawn]
    assert batch["attention_mask"].sum(1).tolist() == [len(example["input_ids"]) for example in drawn]
    without = collate([{"input_ids": [1, 2], "labels": [1, 2]}])
    assert "text_lengths" not in without
    assert torch.equal(
        collate([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1], "labels": [1], "text_length": 0}])[
            "text_lengths"
        ],
        torch.tensor([2, 0]),
    )


class Open:
    name = "open"
    answers = None
    placement: Placement = "anywhere"

    def draw(self, rng: random.Random) -> Sample:
        return Sample(("A very long fact indeed. " * 60,), "What?", "long")


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="task 'open' has open answers, which no classifier can name; take a decoder"):
        TaskExamples((Open(),), NOISE, tiny_tokenizer(), S, "class")
    with pytest.raises(
        ConfigError, match="task 'open': its facts do not fit into 2 segments of 16 tokens; begin with more"
    ):
        TaskExamples((Open(),), NOISE, tiny_tokenizer(), S).draw(random.Random(0), 2)


def test_a_text_may_be_shorter_than_its_segments() -> None:
    task, tokenizer = load_task("memorize"), tiny_tokenizer()
    full = TaskExamples((task,), NOISE, tokenizer, 8 * S, partial=0.5)
    lengths = [replace(full, max_tokens=5 * S).draw(random.Random(seed), 2)["text_length"] for seed in range(40)]
    assert max(lengths) == 5 * S
    assert min(lengths) < 5 * S
    few = replace(full, max_tokens=3)
    with pytest.raises(
        ConfigError, match="do not fit into 2 segments of 128 tokens, of which 3 at most have text; begin"
    ):
        few.draw(random.Random(0), 2)


def test_a_question_may_go_on_in_the_last_segment_of_the_text() -> None:
    apart = examples("detect", partial=0.0)
    drawn, same = (made.draw(random.Random(5), 2) for made in (apart, replace(apart, question_apart=False)))
    assert (drawn.pop("text_length"), same.pop("text_length")) == (8 * S, 0)
    assert drawn == same


def test_hard_noise_is_around_words_of_the_facts() -> None:
    noise = [[" ".join([prose(300, seed=1), "the office", prose(300, seed=2)])]]
    task, tokenizer = load_task("memorize"), tiny_tokenizer()

    def with_office(hard_noise: float) -> int:
        made = TaskExamples((task,), noise, tokenizer, 4 * S, hard_noise=hard_noise)
        texts = [tokenizer.decode(made.draw(random.Random(seed), 4)["input_ids"]) for seed in range(40)]
        return sum("the office" in text.split(".", 1)[1] for text in texts)

    assert with_office(0.0) < with_office(0.5) < with_office(1.0)


def test_without_hard_noise_nothing_is_drawn_for_it() -> None:
    example = examples("detect").draw(random.Random(0), 2)
    assert example == examples("detect", hard_noise=0.0).draw(random.Random(0), 2)
    assert example != examples("detect", hard_noise=1.0).draw(random.Random(0), 2)


@pytest.mark.parametrize("form", ["text", "class", "target"])
@pytest.mark.parametrize("name", ["memorize", "detect"])
def test_some_texts_are_without_their_facts_and_all_else_is_as_it_was(name: str, form: Any) -> None:
    tokenizer, labels = tiny_tokenizer(), Counter[str]()
    made = TaskExamples((load_task(name),), PLAIN, tokenizer, 4 * S, unanswerable=0.25, form=form)
    for seed in range(200):
        example = made.draw(random.Random(seed), 2)
        if not example.get("unanswerable"):
            continue
        length = example["text_length"]
        assert " the " not in tokenizer.decode(example["input_ids"][:length]), "every fact has one"
        label = example["labels"]
        answer = (
            made.classes[label] if isinstance(label, int) else tokenizer.decode([i for i in label if i > 0]).strip()
        )
        labels[answer.removesuffix(tokenizer.eos_token)] += 1
    # 200 of 0.25: four standard deviations are 24. Each of six answers, 8 of them: 11.
    assert 26 <= labels.total() <= 74
    assert set(labels) == set(load_task(name).answers or ())
    assert max(labels.values()) <= 20


def test_without_unanswerable_texts_nothing_is_drawn_for_them_and_others_have_their_facts() -> None:
    assert examples("detect").draw(random.Random(0), 2) == examples("detect", unanswerable=0.0).draw(
        random.Random(0), 2
    )
    made = TaskExamples((load_task("detect"),), PLAIN, tiny_tokenizer(), 4 * S, unanswerable=0.5)
    drawn = [made.draw(random.Random(seed), 2) for seed in range(40)]
    whole = [example for example in drawn if not example.get("unanswerable")]
    assert 8 <= len(whole) <= 32
    assert all(" the " in tiny_tokenizer().decode(example["input_ids"]) for example in whole)


def test_what_accuracy_is_measured_on_is_answerable() -> None:
    made = examples("detect", unanswerable=0.9)
    assert not any(held_out(made, 0, 2, index).get("unanswerable") for index in range(20))
    plain = examples("detect")
    assert held_out(plain, 0, 2, 3) == plain.draw(random.Random("0/held-out/2/3"), 2)


def test_candidates_of_a_place_are_all_answerable_or_none() -> None:
    batches = DrawnBatches(
        examples("detect", unanswerable=0.3), seed=0, num_steps=20, batch_size=8, num_segments=2, candidates=4
    )
    kinds = [{bool(example.get("unanswerable")) for example in batches[index]} for index in range(len(batches))]
    assert all(len(kind) == 1 for kind in kinds)
    # 160 places of 0.3: four standard deviations are 23. Of the hardest of four, were they mixed, it would be 122.
    assert 25 <= sum(kind == {True} for kind in kinds) <= 71


def test_the_end_after_an_answer_need_not_be_learned() -> None:
    with_end, without = (examples("detect", ends=ends).draw(random.Random(5), 2) for ends in (True, False))
    assert with_end["input_ids"] == without["input_ids"]
    assert isinstance(with_end["labels"], list)
    assert without["labels"] == [*with_end["labels"][:-1], -100]
    assert with_end["labels"][-1] == tiny_tokenizer().eos_token_id


def test_facts_that_are_a_text_alone_fill_all_segments() -> None:
    tokenizer = load_model("shipped", "cpu", "float32")[1]
    made = TaskExamples((load_task("pairs", num_pairs=[1, 2, 3], alone=True),), [], tokenizer, 4)
    for number in (1, 2, 3):
        example = made.draw(random.Random(number), number)
        assert example["text_length"] == 4 * number
        pairs = tokenizer.decode(example["input_ids"][: 4 * number]).strip(" .").split(". ")
        mark, key, answer = tokenizer.decode(example["input_ids"][4 * number : -1]).split()
        assert len(pairs) == number
        assert mark == "?"
        assert f"{key} is {answer}" in pairs
    with pytest.raises(ConfigError, match="length=16"):
        made.draw(random.Random(0), 4)


def test_what_facts_alone_cannot_have_is_named() -> None:
    alone = load_task("pairs", alone=True)
    for settings in ({"hard_noise": 0.5}, {"unanswerable": 0.5}):
        with pytest.raises(ConfigError, match="facts alone"):
            TaskExamples((alone,), NOISE, tiny_tokenizer(), 4 * S, **settings)
    with pytest.raises(ConfigError, match="noise is empty"):
        TaskExamples((alone, load_task("detect")), [], tiny_tokenizer(), 4 * S)
    made = TaskExamples((alone,), [], tiny_tokenizer(), 4 * S)
    with pytest.raises(ConfigError, match="leave carried out"):
        made.begin(random.Random(0), 40, lambda count: [0] * count)


@pytest.mark.parametrize(("name", "options", "most"), [("reason", {}, 4), ("pairs", {"num_pairs": 3}, 3)])
def test_several_questions_about_one_text(name: str, options: dict[str, Any], most: int) -> None:
    task, tokenizer = load_task(name, **options), tiny_tokenizer()
    made = [TaskExamples((task,), NOISE, tokenizer, 16 * S, questions=number) for number in (1, 2, 9)]
    one, two, many = (each.draw(random.Random(5), 3) for each in made)
    assert "more" not in one
    for example, number in ((two, 1), (many, most - 1)):
        assert {key: value for key, value in example.items() if key != "more"} == one
        assert len(example["more"]) == number  # pyright: ignore[reportTypedDictNotRequiredAccess]
    rows, length = [many, *many["more"]], one["text_length"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    text = tokenizer.decode(one["input_ids"][:length])
    questions: set[str] = set()
    for row in rows:
        assert row["text_length"] == length
        assert row["input_ids"][:length] == one["input_ids"][:length]
        question, _, answer = tokenizer.decode(row["input_ids"][length:-1]).rpartition(" ")
        questions.add(question)
        if name == "pairs":
            assert f"{question.removeprefix('? ')} is {answer}." in text
        elif question.startswith("What is the"):
            other, direction = question.removeprefix("What is the ").removesuffix(" of?").split()
            assert f"The {answer} is {OPPOSITES[direction]} of the {other}." in text
        else:
            assert f"The {answer} {question.removeprefix('What ').removesuffix('?')}." in text
    assert len(questions) == most
    batch = collate([many, one])
    assert batch["texts"].tolist() == [0] * most + [1]
    assert len(batch["input_ids"]) == len(batch["text_lengths"]) == most + 1
    assert "more" not in held_out(made[2], 0, 3, 0)
    assert "texts" not in collate([one, one])


def test_questions_of_texts_without_their_facts_are_unanswerable() -> None:
    made = TaskExamples((load_task("reason"),), NOISE, tiny_tokenizer(), 16 * S, questions=4, unanswerable=0.5)
    batch = collate([made.draw(random.Random(seed), 2) for seed in range(8)])
    assert batch["unanswerable"].tolist() == [flag for flag in batch["unanswerable"].tolist()[::4] for _ in range(4)]
    assert 0 < int(batch["unanswerable"].sum()) < 32


def test_one_direction_more_often_is_asked_about_once() -> None:
    task = load_task("reason", directions={"north": 4, "south": 1})
    example = TaskExamples((task,), NOISE, tiny_tokenizer(), 16 * S, questions=4).draw(random.Random(0), 2)
    assert "more" not in example


def test_tasks_with_one_question_are_not_asked_several() -> None:
    with pytest.raises(ConfigError, match="questions=2: task 'detect' asks one question about its facts"):
        examples("detect", "reason", questions=2)
