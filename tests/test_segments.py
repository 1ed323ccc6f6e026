"""Cutting rows of any length and padding, and the exact way back."""

import doctest
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent_memory import InputError, segments
from recurrent_memory.segments import Segment, align, check_ids, check_mask, join, num_folded, rest_of, window

quick = settings(deadline=None, database=None)
rows_of_tokens = st.lists(st.lists(st.integers(1, 99), max_size=20), min_size=1, max_size=4)


@st.composite
def masked_rows(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask: padding left, right, in between, everywhere or nowhere."""
    batch, width = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    ids = draw(st.lists(st.lists(st.integers(1, 99), min_size=width, max_size=width), min_size=batch, max_size=batch))
    keep = draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=batch, max_size=batch))
    if draw(st.booleans()):
        keep = [[True] * width for _ in keep]
    return torch.tensor(ids).long().view(batch, width), torch.tensor(keep).bool().view(batch, width)


def segment_of(rows: list[list[int]]) -> Segment:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long).view(len(rows), width)
    return Segment(ids, torch.tensor([len(row) for row in rows]))


def rows_of(segment: Segment) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(segment.input_ids, segment.lengths, strict=True)]


@quick
@given(masked_rows())
def test_aligned_rows_hold_the_kept_tokens_in_order_and_columns_lead_back(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    ids, keep = case
    aligned = align(ids, keep)
    assert rows_of(Segment(aligned.input_ids, aligned.lengths)) == [
        row[mask].tolist() for row, mask in zip(ids, keep, strict=True)
    ]
    valid = torch.arange(aligned.input_ids.shape[1]) < aligned.lengths[:, None]
    back = torch.zeros_like(ids).scatter(1, aligned.columns, aligned.input_ids * valid)
    assert torch.equal(back, ids * keep)


@quick
@given(rows_of_tokens, st.integers(1, 6))
def test_windows_and_the_rest_put_together_are_the_text(rows: list[list[int]], length: int) -> None:
    text = segment_of(rows)
    folds = num_folded(text.lengths, length)
    pieces: list[list[int]] = [[] for _ in rows]
    for index in range(int(folds.max())):
        segment = window(text, index * length, length)
        for row, tokens in enumerate(rows_of(segment)):
            if index < folds[row]:
                assert len(tokens) == length
                pieces[row] += tokens
    rest, rest_lengths = rest_of(text, folds * length)
    for row, tokens in enumerate(rows_of(Segment(rest, rest_lengths))):
        assert pieces[row] + tokens == rows[row]
        assert len(tokens) in (range(1, length + 1) if rows[row] else [0])


@quick
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 99), max_size=6), st.lists(st.integers(1, 99), max_size=6)),
        min_size=1,
        max_size=4,
    )
)
def test_joined_rows_are_the_left_then_the_right(pairs: list[tuple[list[int], list[int]]]) -> None:
    left, right = segment_of([a for a, _ in pairs]), segment_of([b for _, b in pairs])
    joined = join(left.input_ids, left.lengths, right.input_ids, right.lengths)
    assert rows_of(joined) == [a + b for a, b in pairs]
    assert joined.input_ids.shape[1] == max(len(a + b) for a, b in pairs)


@pytest.mark.parametrize(("length", "folds"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_a_full_segment_stays_until_another_token_comes(length: int, folds: int) -> None:
    assert num_folded(torch.tensor([length]), 4).tolist() == [folds]


def test_segments_and_their_rows() -> None:
    full = Segment.full(torch.tensor([[1, 2], [3, 4]]))
    assert full.lengths.tolist() == [2, 2]
    assert not full.is_ragged
    ragged = segment_of([[1, 2, 3], [], [4]])
    assert ragged.is_ragged
    assert not segment_of([[1, 2], [3, 4]]).is_ragged
    some = ragged.rows(torch.tensor([2, 1]))
    assert some.input_ids.tolist() == [[4], [0]]
    assert some.lengths.tolist() == [1, 0]


def test_ids_are_checked() -> None:
    assert check_ids(torch.tensor([1, 2], dtype=torch.int32), 3).dtype == torch.long
    assert check_ids(torch.tensor([1, 2]), 3).shape == (1, 2)
    assert check_ids(torch.zeros(2, 0, dtype=torch.long), 3).shape == (2, 0)
    bad: list[tuple[Any, str]] = [
        (torch.tensor([True]), "torch.bool; pass token ids, not text"),
        (torch.tensor([1.5]), "torch.float32; pass token ids, not text"),
        (torch.tensor([3]), "input_ids holds 3, outside the model's vocabulary of 3; was it made by another tokenizer"),
        (torch.tensor([-2]), "input_ids holds -2, outside"),
        (torch.tensor(1), "input_ids must have the axes"),
    ]
    for ids, message in bad:
        with pytest.raises(InputError) as error:
            check_ids(ids, 3)
        assert message in str(error.value)


def test_masks_are_checked() -> None:
    ids = torch.tensor([[1, 2]])
    assert check_mask(None, ids).tolist() == [[True, True]]
    assert check_mask(torch.tensor([0, 1]), ids).tolist() == [[False, True]]
    with pytest.raises(
        InputError, match=r"attention_mask has the shape \(1, 3\), input_ids \(1, 2\); they must be equal"
    ):
        check_mask(torch.ones(1, 3), ids)


def test_the_docstrings_are_true() -> None:
    result = doctest.testmod(segments, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
