"""What is right is counted: labels, answers as a whole, and those of each task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recurrent_memory.training.accuracy import Tally, num_right
from recurrent_memory.training.bptt import Outcome
from recurrent_memory.training.examples import Example

LABELS = torch.tensor([[-100, 1, 2], [-100, 3, 4], [-100, -100, -100], [-100, 5, -100]])
ASKED = {"labels": LABELS, "text_lengths": torch.tensor([1, 1, 1, 1])}


def outcome(num_wrong: list[int], loss: float = 2.0) -> Outcome:
    wrong = torch.tensor(num_wrong)
    unused: Any = None
    return Outcome(torch.tensor(loss), 5 - wrong.sum(), wrong, torch.zeros(4), 5, unused, torch.zeros(()))


def of(*tasks: str) -> list[Example]:
    return [{"input_ids": [], "labels": [], "task": task} for task in tasks]


def test_an_answer_is_right_as_a_whole_and_labels_are_right_one_by_one() -> None:
    assert num_right(outcome([1, 0, 0, 0]), ASKED) == (2, 3), "a row without labels is not asked"
    assert num_right(outcome([1, 0, 0, 0]), {"labels": LABELS}) == (4, 5)
    assert num_right(outcome([1, 0, 0, 0]), ASKED, torch.tensor([True, False, False, True])) == (1, 1)


def test_tasks_have_the_accuracy_of_their_rows() -> None:
    tally = Tally(("qa1", "qa2", "qa3"))
    tally.add(outcome([1, 0, 0, 0]), ASKED, of("qa1", "qa2", "qa1", "qa2"))
    tally.add(outcome([0, 2, 0, 0], loss=3.0), ASKED, of("qa1", "qa2", "qa2", "qa2"))
    assert tally.metrics("eval") == {
        "eval_loss": 0.5,
        "eval_accuracy": pytest.approx(4 / 6),
        "eval_accuracy_qa1": 1 / 2,
        "eval_accuracy_qa2": 3 / 4,
    }, "nothing was asked of qa3"


def test_sums_of_processes_may_be_added() -> None:
    one, other, both = Tally(("a", "b")), Tally(("a", "b")), Tally(("a", "b"))
    for tally in (one, both):
        tally.add(outcome([1, 0, 0, 0]), ASKED, of("a", "b", "a", "a"))
    for tally in (other, both):
        tally.add(outcome([0, 0, 0, 1]), ASKED, of("b", "b", "a", "b"))
    one.sums = [a + b for a, b in zip(one.sums, other.sums, strict=True)]
    assert one.metrics("eval") == both.metrics("eval")


@pytest.mark.parametrize("tasks", [(), ("qa1",), ("qa1", "qa1")])
def test_one_task_has_the_accuracy_of_all(tasks: tuple[str, ...]) -> None:
    tally = Tally(tasks)
    tally.add(outcome([0, 0, 0, 0]), ASKED, of("qa1", "qa1", "qa1", "qa1"))
    assert tally.metrics("eval") == {"eval_loss": 0.4, "eval_accuracy": 1.0}


def test_nothing_counted_is_no_division_by_zero() -> None:
    assert Tally().metrics("eval") == {"eval_loss": 0.0, "eval_accuracy": 0.0}
