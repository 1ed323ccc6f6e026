"""An answer is right, or it is not."""

import pytest

from recurrent_memory.tasks.scoring import exact_match


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("garden", True),
        (" Garden.", True),
        (" Garden. ", True),
        ("the garden", False),
        ("in the garden", False),
        ("gardens", False),
        ("", False),
    ],
)
def test_an_answer_must_match_exactly(answer: str, right: bool) -> None:
    assert exact_match(answer, "garden") is right
