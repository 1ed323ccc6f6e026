"""Batches are a pure function of the seed, the step and the place in the batch."""

from __future__ import annotations

import random

import pytest
import torch

from recurrent_memory.errors import InputError
from recurrent_memory.training.examples import DrawnBatches, collate, collate_places, hardest, held_out
from training.copy_task import CopyTask, S


def drawn(**changes: object) -> DrawnBatches:
    values = {"seed": 3, "num_steps": 40, "batch_size": 4, "num_segments": 5} | changes
    return DrawnBatches(CopyTask(), **values)  # type: ignore[arg-type]


def test_an_item_does_not_depend_on_what_was_drawn_before() -> None:
    data, again = drawn(), drawn()
    random.seed(0)
    backwards = {index: again[index] for index in reversed(range(len(again)))}
    assert [data[index] for index in range(len(data))] == [backwards[index] for index in range(len(data))]
    assert len({tuple(data[index][0]["input_ids"]) for index in range(len(data))}) > 100
    assert [data[i] for i in range(8)] != [drawn(seed=4)[i] for i in range(8)]


def test_steps_are_counted_from_the_first() -> None:
    data, later = drawn(), drawn(first_step=3)
    assert [later[index] for index in range(8)] == [data[3 * 4 + index] for index in range(8)]
    assert later.num_segments_at(2) == data.num_segments_at(5)


def test_a_batch_has_one_number_of_segments_and_steps_have_all() -> None:
    data = drawn()
    lengths = [len(data[index][0]["input_ids"]) // S for index in range(len(data))]
    for step in range(40):
        assert set(lengths[4 * step : 4 * step + 4]) == {data.num_segments_at(step)}
    assert set(lengths) == {1, 2, 3, 4, 5}
    fixed = drawn(random_num_segments=False)
    assert {len(fixed[index][0]["input_ids"]) for index in range(20)} == {5 * S}


def test_held_out_examples_are_others() -> None:
    data = drawn(random_num_segments=False)
    trained = {tuple(data[index][0]["input_ids"]) for index in range(len(data))}
    others = [tuple(held_out(CopyTask(), 3, 5, index)["input_ids"]) for index in range(20)]
    assert len(set(others)) == 20
    assert not trained & set(others)


def test_candidates_are_drawn_for_each_place_and_the_first_is_that_of_one_alone() -> None:
    one, three = drawn(), drawn(candidates=3)
    for index in (0, 5, 70):
        assert [three[index][0]] == one[index]
        assert (
            len({tuple(example["input_ids"]) for example in three[index]}) == 3 or one.num_segments_at(index // 4) == 1
        )
    assert len(three) == len(one)
    places = [three[0], three[1]]
    assert torch.equal(collate_places(places)["input_ids"], collate([*places[0], *places[1]])["input_ids"])


def test_the_hardest_of_each_place() -> None:
    losses = torch.tensor([[0.5, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.5, 3.0]])
    assert hardest(losses.flatten(), 3).tolist() == [1, 3, 8]
    assert hardest(losses.flatten(), 1).tolist() == list(range(9))


def test_rows_are_padded_on_the_right() -> None:
    batch = collate([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[-100, 6], [7, -100]]
    classes = collate([{"input_ids": [5, 6], "labels": 1}, {"input_ids": [], "labels": 0}])
    assert torch.equal(classes["labels"], torch.tensor([1, 0]))
    assert classes["attention_mask"].tolist() == [[1, 1], [0, 0]]


def test_a_batch_names_its_unanswerable_rows() -> None:
    known, unknown = {"input_ids": [5], "labels": 1}, {"input_ids": [6], "labels": 0, "unanswerable": True}
    assert "unanswerable" not in collate([known, {**known, "unanswerable": False}])
    assert collate([known, unknown])["unanswerable"].tolist() == [False, True]


def test_classes_and_lists_do_not_mix() -> None:
    with pytest.raises(InputError, match="an int in some examples of a batch and a list in others"):
        collate([{"input_ids": [5], "labels": 1}, {"input_ids": [5], "labels": [1]}])
