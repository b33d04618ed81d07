"""Shares by rank, and counts that meet a budget to the last weight."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.allocate.shares import MOST, counts, linear_shares, patterns, shifted
from methods.layerwise.select import round_half_up

F = Fraction


def test_the_line_of_the_paper() -> None:
    """Algorithm 1 at p = 0.7, α = 0.1: L = 0.2, R = 0.4, and what stays is L + id (R - L) / (units - 1)."""
    sensitivities = [3.0, -1.0, 7.0, 5.0, 0.5]
    p, alpha = F(7, 10), F(1, 10)
    low, high = 1 - p - alpha, 1 - p + alpha
    kept = [1 - share for share in linear_shares(sensitivities, p, alpha)]
    ids = [2, 0, 4, 3, 1]
    assert kept == [low + F(number, 4) * (high - low) for number in ids]
    assert sum(kept) / 5 == 1 - p
    assert max(kept) == kept[2], "the most sensitive keeps most"


def test_equal_sensitivities_rank_by_index_and_one_unit_has_the_share_itself() -> None:
    assert linear_shares([1.0, 1.0, 1.0], F(1, 2), F(1, 10)) == [F(6, 10), F(1, 2), F(4, 10)]
    assert linear_shares([4.0], F(1, 2), F(1, 10)) == [F(1, 2)]


amounts = st.fractions(0, F(95, 100), max_denominator=1000)
alphas = st.fractions(0, F(1, 2), max_denominator=100)
layers = st.lists(
    st.tuples(st.integers(1, 5000), st.floats(-1e3, 1e3, allow_nan=False)), min_size=1, max_size=20
)


@settings(max_examples=60, deadline=None)
@given(layers, amounts, alphas)
def test_as_many_weights_go_as_under_uniform_shares(
    layers: list[tuple[int, float]], amount: Fraction, alpha: Fraction
) -> None:
    sizes, felt = [size for size, _ in layers], [value for _, value in layers]
    wanted = sum(round_half_up(amount * size) for size in sizes)
    shares = linear_shares(felt, amount, alpha)
    moved = shifted(sizes, shares, amount * sum(sizes))
    assert sum(size * share for size, share in zip(sizes, moved, strict=True)) == amount * sum(sizes)
    assert all(0 <= share <= MOST for share in moved)
    assert sorted(range(len(sizes)), key=lambda i: (moved[i], shares[i])) == sorted(
        range(len(sizes)), key=lambda i: shares[i]
    ), "the offset keeps the order"
    found = counts(sizes, moved, wanted)
    assert sum(found) == wanted
    assert all(
        abs(count - size * share) <= len(sizes) and 0 <= count <= size
        for count, size, share in zip(found, sizes, moved, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(layers, amounts)
def test_equal_shares_are_the_uniform_budget(layers: list[tuple[int, float]], amount: Fraction) -> None:
    sizes, felt = [size for size, _ in layers], [value for _, value in layers]
    uniform = [round_half_up(amount * size) for size in sizes]
    shares = shifted(sizes, linear_shares(felt, amount, F(0)), amount * sum(sizes))
    assert counts(sizes, shares, sum(uniform)) == uniform


def test_large_sensitive_matrices_do_not_shift_the_budget() -> None:
    """The published code's mean over units: one big sensitive matrix keeps more, and less than p is removed."""
    sizes, felt = [1000, 1000, 8000], [1.0, 2.0, 3.0]
    shares = linear_shares(felt, F(1, 2), F(1, 10))
    literal = sum(size * share for size, share in zip(sizes, shares, strict=True))
    assert literal / 10_000 == F(43, 100)
    moved = shifted(sizes, shares, F(5000))
    assert [share - before for share, before in zip(moved, shares, strict=True)] == [F(7, 100)] * 3


def test_the_clip_is_made_up_for_by_the_others() -> None:
    moved = shifted([100, 100, 100], [F(97, 100), F(90, 100), F(83, 100)], F(270))
    assert moved[0] == MOST
    assert moved[1] - moved[2] == F(7, 100)
    assert sum(100 * share for share in moved) == 270
    assert shifted([10, 10], [F(1, 2), F(1, 2)], F(0)) == [0, 0]
    assert shifted([10, 10], [F(-1), F(1, 2)], F(20)) == [MOST, MOST], "as near as the clip lets it"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-9, 9, allow_nan=False)), min_size=1, max_size=9),
    st.integers(1, 7),
    alphas,
)
def test_patterns_come_as_near_as_the_order_lets_them(
    layers: list[tuple[int, float]], remove: int, alpha: Fraction
) -> None:
    sizes, felt = [8 * size for size, _ in layers], [value for _, value in layers]
    shares = linear_shares(felt, F(remove, 8), alpha)
    total = F(remove, 8) * sum(sizes)
    gone = patterns(sizes, shares, 8, total)
    assert all(0 <= n <= 7 for n in gone)
    for i in range(len(sizes)):
        for j in range(len(sizes)):
            assert not (shares[i] > shares[j] and gone[i] < gone[j])
    gap = abs(sum(F(size * n, 8) for size, n in zip(sizes, gone, strict=True)) - total)
    for offset in [F(k, 64) - share for share in shares for k in range(4, 65, 8)]:
        other = [min(7, max(0, round_half_up(8 * (share + offset)))) for share in shares]
        assert gap <= abs(sum(F(size * n, 8) for size, n in zip(sizes, other, strict=True)) - total)
    if alpha == 0:
        assert gone == [remove] * len(sizes)


@pytest.mark.parametrize(("group", "most"), [(2, 1), (4, 3), (8, 7), (20, 19), (32, 30)])
def test_patterns_keep_a_weight_and_five_percent(group: int, most: int) -> None:
    assert patterns([group], [F(1)], group, F(group)) == [most]
