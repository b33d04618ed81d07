"""Exact budgets: precisely as many as asked, ties by index."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.errors import NonFiniteError
from methods.layerwise.select import block_share, round_half_up, smallest, smallest_in_groups


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(-3, 70))
@settings(deadline=None)
def test_smallest_is_a_stable_sort(values: list[int], count: int) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    expected = set(order[: max(0, count)])
    mask = smallest(scores, count)
    assert {index for index in range(len(values)) if mask[index]} == expected


def test_smallest_counts_row_major_and_leaves_views_alone() -> None:
    scores = torch.zeros(6, 8)[:, ::2]
    mask = smallest(scores, 5)
    assert mask.shape == scores.shape
    assert mask.flatten().tolist() == [True] * 5 + [False] * 19


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 2), (3, 7), (1, 16)])
def test_groups_lose_exactly_their_share(keep: int, group: int) -> None:
    torch.manual_seed(keep * group)
    scores = torch.randint(0, 3, (5, 3 * group)).float()
    mask = smallest_in_groups(scores, keep, group)
    assert (mask.view(5, 3, group).sum(-1) == group - keep).all()
    for row in range(5):
        for start in range(0, 3 * group, group):
            part = scores[row, start : start + group].tolist()
            order = sorted(range(group), key=lambda index: (part[index], index))
            assert {i for i in range(group) if mask[row, start + i]} == set(order[: group - keep])


def test_nan_scores_are_refused() -> None:
    scores = torch.tensor([[1.0, float("nan"), 2.0, 3.0]])
    with pytest.raises(NonFiniteError, match="saliency is NaN"):
        smallest(scores, 2)
    with pytest.raises(NonFiniteError, match="saliency is NaN"):
        smallest_in_groups(scores, 2, 4)


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 40))
def test_block_shares_add_up(count: int, total: int, block: int) -> None:
    count = min(count, total)
    shares = [block_share(count, total, a, min(a + block, total)) for a in range(0, total, block)]
    assert sum(shares) == count
    assert all(0 <= share <= block for share in shares)


def test_halves_round_up() -> None:
    assert [round_half_up(Fraction(n, 2)) for n in range(5)] == [0, 1, 1, 2, 2]
