"""Lanes carry their memory from step to step: as one reading of the whole text, and through a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_memory import RecurrentMemoryModel
from recurrent_memory.errors import ConfigError, RecipeError
from recurrent_memory.tasks.registry import load_task
from recurrent_memory.training.bptt import Backpropagation, backpropagate, measure
from recurrent_memory.training.curriculum import Curriculum, Stage, train_curriculum
from recurrent_memory.training.lane_trainer import LaneTrainer
from recurrent_memory.training.task_examples import TaskExamples
from recurrent_memory.training.task_lanes import Carried, TaskLanes
from recurrent_memory.training.trainer import RecurrentMemoryTrainer
from tiny_models import prose, tiny_model, tiny_tokenizer
from training.copy_task import arguments

LENGTH = 32
NOISE = [[prose(600, seed=1)], [prose(900, seed=3)]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(seed: int = 0) -> RecurrentMemoryModel:
    from tiny_models import MemoryConfig, tiny_backbone

    memory = MemoryConfig(num_memory_tokens=2, segment_length=LENGTH)
    return RecurrentMemoryModel.from_backbone(tiny_backbone(seed), memory)


def examples_of(*names: str, partial: float = 0.3) -> TaskExamples:
    return TaskExamples(tuple(map(load_task, names)), NOISE, tiny_tokenizer(), LENGTH, partial=partial)


def lanes_of(model: RecurrentMemoryModel, carried: Carried, **settings: Any) -> TaskLanes:
    values: dict[str, Any] = {"num_lanes": 3, "num_segments": 2, "seed": 5}
    return TaskLanes(model, examples_of("detect"), carried, **(values | settings))


def test_what_is_carried_is_the_memory_of_the_text_without_its_questions() -> None:
    model = model_of().double()
    lanes = lanes_of(model, Carried(lifetime=1e9, drop_lost=False, first_segments=3, spread=False))
    texts: list[list[int]] = [[], [], []]
    breaks: list[list[int]] = [[], [], []]
    for step in range(6):
        batch, state = lanes.next(step)
        for row, (ids, length) in enumerate(zip(batch["input_ids"], batch["text_lengths"].tolist(), strict=True)):
            assert length > (2 * LENGTH if step == 0 else LENGTH)
            texts[row] += ids[:length].tolist()
            breaks[row].append(length)
        lanes.finish(step, backpropagate(model, **batch, memory_state=state, method=Backpropagation()))
    for row in range(3):
        state, start = model.initial_state(1), 0
        for length in breaks[row]:  # a question's place breaks a segment, so the text is read piece by piece
            state = model.fold(model.read(torch.tensor([texts[row][start : start + length]]), memory_state=state))
            start += length
        assert torch.allclose(lanes.state.memory[row], state.memory[0], atol=1e-10)
        assert int(lanes.state.tokens_read[row]) > len(texts[row])  # with the questions, which are not remembered
    assert lanes.mean_age == pytest.approx(sum(map(len, texts)) / 3 / LENGTH)


def test_the_fact_stands_in_the_first_segments_and_is_asked_in_every_step() -> None:
    model = model_of()
    lanes = lanes_of(model, Carried(lifetime=1e9, drop_lost=False, first_segments=3, spread=False))
    said = lanes.next(0)[0]
    text = tiny_tokenizer().decode(said["input_ids"][0, : int(said["text_lengths"][0])])
    answers = []
    for step in range(1, 4):
        batch, _ = lanes.next(step)
        row, length = batch["input_ids"][0], int(batch["text_lengths"][0])
        answers.append(tiny_tokenizer().decode(row[length:][batch["attention_mask"][0, length:].bool()]))
    assert len(set(answers)) == 1
    person, _, place = answers[0].removeprefix("Where is ").removesuffix("<|endoftext|>").partition("? ")
    assert f"{person} " in text
    assert f"the {place}." in text


def test_lanes_end_at_random_and_when_they_were_wrong() -> None:
    model = model_of()
    for carried, ended in (
        (Carried(1.0, drop_lost=False), 3),
        (Carried(1e9), 3),
        (Carried(1e9, drop_lost=False, spread=False), 0),
        (Carried(1e9, drop_lost=False), 1),  # the first lane, in every step
    ):
        lanes = lanes_of(model, carried)  # nothing learned: every answer is wrong
        batch, state = lanes.next(0)
        lanes.finish(0, backpropagate(model, **batch, memory_state=state, method=Backpropagation()))
        assert sum(life["number"] for life in lanes.standing()["lives"]) == ended
        _, state = lanes.next(1)
        fresh = model.initial_state(3)
        assert torch.equal(state.memory, fresh.memory) == (ended == 3)
        assert torch.equal(state.memory[0], fresh.memory[0]) == (ended > 0)


def several(questions: int) -> TaskExamples:
    return TaskExamples((load_task("reason"),), NOISE, tiny_tokenizer(), 4 * LENGTH, questions=questions)


def test_lanes_with_several_questions_read_and_remember_what_those_with_one_do() -> None:
    model = model_of().double()
    carried = Carried(lifetime=40, drop_lost=False, first_segments=3, wait=True, keep=1.0)
    made: list[TaskLanes] = []
    for questions in (1, 4):
        lanes = TaskLanes(
            model, replace(several(questions), segment_length=LENGTH), carried, num_lanes=3, num_segments=2, seed=5
        )
        made.append(lanes)
    one, four = made
    for step in range(12):
        (batch, state), (batches, states) = (lanes.next(step) for lanes in made)
        assert batches["texts"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
        assert len(states) == 12
        assert four.nothing_said.equal(one.nothing_said)
        assert four.of_rows(four.nothing_said).tolist() == [
            said for said in one.nothing_said.tolist() for _ in range(4)
        ]
        for name, values in batch.items():
            firsts = batches[name][::4]
            if name in ("text_lengths", "unanswerable"):
                assert firsts.equal(values)
            else:  # padded to the longest question
                assert firsts[:, : values.shape[1]].equal(values)
        asked = {tuple(row.tolist()) for row in batches["input_ids"][:4]}
        assert len(asked) == 4
        for given in (batch, batches):
            given.pop("unanswerable", None)
        one.finish(step, backpropagate(model, **batch, memory_state=state, method=Backpropagation()))
        four.finish(step, backpropagate(model, **batches, memory_state=states, method=Backpropagation()))
        assert four.standing() == one.standing()
        assert torch.allclose(four.state.memory, one.state.memory, atol=1e-10)


def test_a_lane_with_several_questions_ends_when_one_was_wrong() -> None:
    model = model_of()
    examples = replace(several(3), segment_length=LENGTH)
    lanes = TaskLanes(model, examples, Carried(lifetime=1e9, spread=False), num_lanes=3, num_segments=2, seed=5)
    for step in range(2):
        batch, state = lanes.next(step)
        outcome = measure(model, **batch, memory_state=state)
        wrong = torch.zeros(9, dtype=torch.long)
        wrong[5] = step
        lanes.finish(step, replace(outcome, num_wrong=wrong))
    assert [life["number"] for life in lanes.standing()["lives"]] == [0, 1, 0]


def test_lifetimes_are_spread_over_the_lanes() -> None:
    model = model_of()
    lanes = lanes_of(model, Carried(200.0, drop_lost=False), num_lanes=3)  # of a step, of ten, of a hundred
    for step in range(300):
        batch, state = lanes.next(step)
        lanes.finish(step, measure(model, **batch, memory_state=state))
    first, second, third = (life["number"] for life in lanes.standing()["lives"])
    assert first == 300
    assert 12 <= second <= 52  # 30, of a standard deviation of 5.2
    assert third <= 10  # 3, of 1.7


def read(lanes: TaskLanes, model: RecurrentMemoryModel, step: int) -> dict[str, Any]:
    batch, state = lanes.next(step)
    inputs = {name: values for name, values in batch.items() if name != "unanswerable"}
    lanes.finish(step, measure(model, **inputs, memory_state=state))
    return batch


def test_facts_come_after_a_while() -> None:
    model = model_of()
    carried = Carried(40.0, drop_lost=True, first_segments=3, spread=False, wait=True)  # told in one of twenty steps
    noise = [["Nothing was heard, and nothing was seen there. " * 200]]
    examples = TaskExamples((load_task("detect"),), noise, tiny_tokenizer(), LENGTH, partial=0.3)
    lanes = TaskLanes(model, examples, carried, num_lanes=8, num_segments=2, seed=5)
    texts, waited, told = [""] * 8, [0] * 8, 0
    for step in range(120):
        numbers = [life["number"] for life in lanes.standing()["lives"]]
        batch = read(lanes, model, step)
        without = batch.get("unanswerable", torch.zeros(8, dtype=torch.bool)).tolist()
        for row, (ids, length) in enumerate(zip(batch["input_ids"], batch["text_lengths"].tolist(), strict=True)):
            fresh = waited[row] == 0 and not texts[row]
            texts[row] += tiny_tokenizer().decode(ids[:length])
            question = tiny_tokenizer().decode(ids[length:][batch["attention_mask"][row, length:].bool()])
            person, _, place = question.removeprefix("Where is ").removesuffix("<|endoftext|>").partition("? ")
            said = f" the {place}." in texts[row] and f"{person} " in texts[row]
            assert said != without[row], (texts[row], question)
            if without[row]:
                assert length == 2 * LENGTH
                waited[row] += 1
                assert bool(lanes.nothing_said[row]) != fresh
                assert lanes.standing()["lives"][row]["number"] == numbers[row]  # wrong or right, it goes on
            else:
                told += 1
                assert not lanes.nothing_said[row]  # nothing is learned here, so a lane that has told its facts ends
                assert lanes.standing()["lives"][row]["number"] == numbers[row] + 1
                texts[row], waited[row] = "", 0
    steps = 120 * 8
    assert 24 <= told <= 76  # 960 / 20 = 48, of a standard deviation of 6.8
    assert told < steps


@pytest.mark.parametrize("first_segments", [8, 10])
def test_facts_come_apart(first_segments: int) -> None:
    model, num_segments = model_of(), 8
    noise = [["Nothing was heard, and nothing was seen there. " * 400]]
    examples = TaskExamples((load_task("reason"),), noise, tiny_tokenizer(), LENGTH, partial=0.3)
    carried = Carried(24.0, drop_lost=False, first_segments=first_segments, spread=False, wait=True, apart=True)
    lanes = TaskLanes(model, examples, carried, num_lanes=6, num_segments=num_segments, seed=5)
    texts, said, gaps = [""] * 6, [list[int]() for _ in range(6)], list[int]()
    for step in range(60):
        lives = lanes.standing()["lives"]
        batch = read(lanes, model, step)
        without = batch.get("unanswerable", torch.zeros(6, dtype=torch.bool)).tolist()
        for row, (ids, length) in enumerate(zip(batch["input_ids"], batch["text_lengths"].tolist(), strict=True)):
            if lives[row]["tokens"] == 0:
                texts[row], said[row] = "", []
            step_text = tiny_tokenizer().decode(ids[:length])
            texts[row] += step_text
            told = step_text.count(" of the ")
            if told:
                assert not lanes.nothing_said[row]
                said[row] += [step] * told
                assert length >= first_segments * LENGTH
            elif lives[row]["tokens"]:
                assert lanes.nothing_said[row]
            assert len(said[row]) == texts[row].count(" of the ") <= 2, "no fact is cut in two by the end of a step"
            assert without[row] == (len(said[row]) < 2)
            if told and len(said[row]) == 2:
                gaps.append(said[row][1] - said[row][0])
    assert len(gaps) >= 20  # told in one of three steps, once or twice in a life
    assert 0 < gaps.count(0) < len(gaps)  # a third, together
    assert max(gaps) > 2
    with pytest.raises(ConfigError, match="apart: facts come apart in carried lanes that wait"):
        Carried(apart=True)


@pytest.mark.parametrize("questions", [1, 2])
@pytest.mark.parametrize("asked_early", [0.0, 0.3, 1.0, None])
def test_a_lane_that_waits_is_asked_now_and_then_about_something_else(
    asked_early: float | None, questions: int
) -> None:
    model = model_of()
    carried = Carried(12.0, drop_lost=False, first_segments=8, wait=True, asked_early=asked_early)
    examples = replace(examples_of("reason"), questions=questions)
    lanes = TaskLanes(model, examples, carried, num_lanes=3, num_segments=4, seed=0)
    waiting, asked, endings = 0, 0, dict[tuple[int, int], set[tuple[int, ...]]]()
    for step in range(150):
        lives = [life["number"] for life in lanes.standing()["lives"]]
        batch = read(lanes, model, step)
        rows = batch.get("texts", torch.arange(3)).tolist()
        early = batch.get("unanswerable", torch.zeros(len(rows), dtype=torch.bool)).tolist()
        has_labels = (batch["labels"] != -100).any(1).tolist()
        for row, lane in enumerate(rows):
            if row and rows[row - 1] == lane:
                continue
            if not early[row]:
                assert has_labels[row]
                continue
            waiting, asked = waiting + 1, asked + has_labels[row]
            assert rows.count(lane) == (questions if has_labels[row] else 1), "what is not asked is no row"
            if has_labels[row]:
                length = int(batch["text_lengths"][row])
                ending = batch["input_ids"][row][length:][batch["attention_mask"][row, length:].bool()]
                endings.setdefault((lane, lives[lane]), set()).add(tuple(ending.tolist()))
    expected = 1.0 if asked_early is None else asked_early
    assert waiting > 100
    assert abs(asked / waiting - expected) < (0.15 if 0 < expected < 1 else 1e-9)
    most = max((len(different) for different in endings.values()), default=0)
    assert (most == 1) if asked_early is None else (most > 2) if asked_early else (most == 0)


def test_a_share_of_the_steps_that_are_waited_is_one() -> None:
    for settings in ({"asked_early": 0.5}, {"asked_early": 1.5, "wait": True}, {"asked_early": -0.1, "wait": True}):
        with pytest.raises(
            ConfigError, match=r"asked_early=.*: a share, 0 to 1, of the steps in which carried lanes wait"
        ):
            Carried(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("asked_early", [None, 0.5])
@pytest.mark.parametrize("apart", [False, True])
def test_a_waiting_lane_goes_on_where_it_stood(apart: bool, asked_early: float | None) -> None:
    model = model_of()
    carried = Carried(12.0, drop_lost=False, first_segments=8, wait=True, apart=apart, asked_early=asked_early)
    task = "reason" if apart else "detect"
    lanes, other = (TaskLanes(model, examples_of(task), carried, num_lanes=3, num_segments=4, seed=0) for _ in range(2))
    for step in range(7):
        read(lanes, model, step)
    other.restore(lanes.standing(), lanes.memory_values())
    for step in range(7, 20):
        expected, batch = read(lanes, model, step), read(other, model, step)
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(batch[name], values), name
        assert torch.equal(other.nothing_said, lanes.nothing_said)


def test_lanes_without_waiting_are_as_they_were() -> None:
    model = model_of()
    plain = lanes_of(model, Carried(1e9, drop_lost=False, spread=False))
    batch = read(plain, model, 0)
    assert "unanswerable" not in batch
    assert not plain.nothing_said.any()
    read(plain, model, 1)
    assert plain.nothing_said.all()


def test_facts_that_begin_a_text_cannot_come_after_a_while() -> None:
    with pytest.raises(ConfigError, match="wait: the facts of 'memorize' begin a text"):
        TaskLanes(
            model_of(), examples_of("memorize"), Carried(1e6, wait=True), num_lanes=3, num_segments=2, seed=0
        )  # fmt: skip


def test_some_lanes_begin_anew_in_every_step() -> None:
    model = model_of()
    lanes = lanes_of(model, Carried(400.0, drop_lost=False, ordinary=0.5, wait=True), num_lanes=6)
    for step in range(60):
        batch = read(lanes, model, step)
        assert not batch.get("unanswerable", torch.zeros(6, dtype=torch.bool))[:4].any()
    numbers = [life["number"] for life in lanes.standing()["lives"]]
    assert numbers[:4] == [60] * 4  # half of them, and the shortest life of the others
    assert max(numbers[4:]) < 30
    with pytest.raises(ConfigError, match="ordinary=1.0, a share of the carried lanes, must be at least 0 and below 1"):
        Carried(ordinary=1.0)


def test_a_question_longer_than_a_segment_is_named() -> None:
    short = TaskExamples((load_task("detect"),), NOISE, tiny_tokenizer(), 4, partial=0.0)
    with pytest.raises(ConfigError, match="a question with its answer has .* tokens, more than a segment"):
        TaskLanes(tiny_model(segment_length=4), short, Carried(first_segments=40), num_lanes=1, num_segments=1, seed=0)


STAGES = Curriculum((Stage(1, 2), Stage(2, 5, learning_rate=1e-3, eval_segments=3, carried=Carried(8.0, False, 2))))


def trained(out: Path, **settings: Any) -> RecurrentMemoryModel:
    model = model_of()
    train_curriculum(
        model, arguments(out, eval_steps=2), examples=examples_of("detect", "memorize"), curriculum=STAGES,
        num_eval_examples=2, **settings,
    )  # fmt: skip
    return model


def test_a_carried_stage_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(tmp_path / "whole").state_dict()
    step = LaneTrainer.training_step

    def interrupt(trainer: LaneTrainer, *args: Any) -> Any:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(trainer, *args)

    monkeypatch.setattr(LaneTrainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped")
    monkeypatch.setattr(LaneTrainer, "training_step", step)
    resumed = trained(tmp_path / "stopped", resume=True).state_dict()
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name


def test_lanes_are_where_the_trainer_has_put_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dtype stands for another device."""
    begin = RecurrentMemoryTrainer.__init__

    def moves(trainer: RecurrentMemoryTrainer, model: RecurrentMemoryModel, *args: Any, **settings: Any) -> None:
        begin(trainer, model.double(), *args, **settings)

    monkeypatch.setattr(RecurrentMemoryTrainer, "__init__", moves)
    trainer = LaneTrainer(
        model_of().float(), arguments(tmp_path), examples=examples_of("detect"), num_segments=2, carried=Carried(8.0)
    )
    assert {tensor.dtype for tensor in trainer.lanes.state.tensors.values()} == {torch.float64}


def test_a_carried_stage_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start it without torchrun, with batch.parts: 1"):
        train_curriculum(
            model_of(), arguments(tmp_path / "a", gradient_accumulation_steps=2), examples=examples_of("detect"),
            curriculum=Curriculum(STAGES.stages[1:]),
        )  # fmt: skip
    ending = replace(examples_of("detect"), max_tokens=9)
    for stages in (STAGES.stages, (STAGES.stages[0], replace(STAGES.stages[1], examples=ending))):
        with pytest.raises(
            ConfigError,
            match="max_tokens=9, question_apart=True, unanswerable=0.0: carried lanes have texts without end",
        ):
            train_curriculum(
                model_of(),
                arguments(tmp_path / "c"),
                examples=ending if stages is STAGES.stages else examples_of("detect"),
                curriculum=Curriculum(stages),
            )
    waits = (STAGES.stages[0], replace(STAGES.stages[1], carried=Carried(8.0, wait=True)))
    with pytest.raises(ConfigError, match="wait: the facts of 'memorize' begin a text"):
        train_curriculum(
            model_of(), arguments(tmp_path / "c"), examples=examples_of("memorize"), curriculum=Curriculum(waits)
        )
    with pytest.raises(ConfigError, match=r"with batch.parts: 1"):  # of the second stage, before the first
        train_curriculum(
            model_of(), arguments(tmp_path / "c", gradient_accumulation_steps=2), examples=examples_of("detect"), curriculum=STAGES
        )  # fmt: skip
    assert not (tmp_path / "c").exists()
    with pytest.raises(ConfigError, match="lifetime=0.5 and first_segments=4 of carried lanes must be at least 1"):
        Carried(0.5)
    model = model_of()
    lanes = lanes_of(model, Carried())
    with pytest.raises(RecipeError, match="the checkpoint has no carried lanes"):
        lanes.restore({}, {})
    with pytest.raises(RecipeError, match="the checkpoint has 3 lanes, the recipe 2"):
        lanes_of(model, Carried(), num_lanes=2).restore(lanes.standing(), lanes.memory_values())


def test_where_the_question_begins_reaches_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    from recurrent_memory.training import trainer

    def looking(model: Any, **inputs: Any) -> Any:
        seen.append("text_lengths" in inputs)
        return backpropagate(model, **inputs)

    monkeypatch.setattr(trainer, "backpropagate", looking)
    train_curriculum(
        model_of(), arguments(tmp_path), examples=examples_of("detect"), curriculum=Curriculum.of([2], 2),
        num_eval_examples=2,
    )  # fmt: skip
    assert seen == [True, True]
