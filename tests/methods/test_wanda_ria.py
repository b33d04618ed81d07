"""Wanda and RIA: scores, exact budgets by row, group and matrix, and the published codes' counts."""

from __future__ import annotations

import pytest
import torch
from layers import error, layer, problem

from methods.errors import NonFiniteError
from methods.layerwise.magnitude import Magnitude, magnitude_mask
from methods.layerwise.ria import RIA, ria_mask, ria_scores
from methods.layerwise.rule import Budget
from methods.layerwise.select import block_share, smallest, smallest_in_groups, smallest_in_rows
from methods.layerwise.wanda import Wanda, wanda_mask, wanda_scores


def _rows_one_by_one(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The obvious twin: each row alone, by sorted pairs of (score, index)."""
    rows, columns = scores.shape
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(rows):
        here = block_share(count, rows * columns, row * columns, (row + 1) * columns)
        for _, column in sorted((float(scores[row, j]), j) for j in range(columns))[:here]:
            mask[row, column] = True
    return mask


@pytest.mark.parametrize("rows", [1, 3, 7, 1030])
@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 0.999, 1.0])
def test_rows_share_a_count_exactly(rows: int, share: float) -> None:
    scores = torch.randint(0, 5, (rows, 11), generator=torch.Generator().manual_seed(rows)).float()
    count = round(share * scores.numel())
    mask = smallest_in_rows(scores, count)
    assert int(mask.sum()) == count
    assert int(mask.sum(dim=1).max() - mask.sum(dim=1).min()) <= 1
    assert torch.equal(mask, _rows_one_by_one(scores, count))
    turned = scores.T.contiguous().T
    assert torch.equal(smallest_in_rows(turned, count), mask)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="a saliency is NaN"):
        smallest_in_rows(torch.tensor([[1.0, float("nan")]]), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unit_norms_make_wanda_magnitude_per_row(dtype: torch.dtype) -> None:
    dense, _ = layer(0)
    weight, norms = dense.to(dtype), torch.ones(96, dtype=torch.float64)
    mask = wanda_mask(weight, norms, Budget(remove=1155))
    assert torch.equal(mask, smallest_in_rows(weight.float().abs(), 1155))
    pattern = Budget(keep=2, group=4)
    assert torch.equal(wanda_mask(weight, norms, pattern), magnitude_mask(weight, pattern))


def test_wanda_scores_are_the_norms_of_what_a_weight_adds() -> None:
    """|W_ij| |X_j| is the norm of the outputs' change when that weight alone is removed."""
    dense, inputs = layer(1, rows=3, columns=8)
    scores = wanda_scores(dense, problem(dense, inputs, Budget()).moments.norms)
    for row, column in ((0, 0), (1, 5), (2, 7)):
        less = dense.clone()
        less[row, column] = 0
        assert float(scores[row, column]) == pytest.approx(error(inputs, dense, less) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("budget", [Budget(remove=1001), Budget(keep=2, group=4), Budget(keep=5, group=12)])
@pytest.mark.parametrize("rule", [Wanda(), RIA(), RIA(per_row=True)], ids=str)
def test_budgets_are_exact_and_kept_weights_stand(budget: Budget, rule: Wanda | RIA) -> None:
    dense, inputs = layer(2)
    solved = rule.solve(problem(dense, inputs, budget))
    assert int(solved.mask.sum()) == budget.count(problem(dense, inputs, budget).matrix)
    if budget.group:
        assert (solved.mask.view(24, -1, budget.group).sum(-1) == budget.group - budget.keep).all()
    assert torch.equal(solved.weight, dense.masked_fill(solved.mask, 0))
    again = rule.update(problem(dense, inputs, budget), solved.mask)
    assert torch.equal(again.weight, solved.weight)


def test_dead_inputs_go_first() -> None:
    dense, inputs = layer(3)
    inputs[:, [4, 70]] = 0
    for rule in (Wanda(), RIA()):
        assert bool(rule.solve(problem(dense, inputs, Budget(remove=60))).mask[:, [4, 70]].all())


def test_wanda_beats_magnitude_on_uneven_inputs() -> None:
    gains = []
    for seed in range(5):
        dense, inputs = layer(seed)
        budget = Budget(remove=1400)
        plain, ours = (rule.solve(problem(dense, inputs, budget)).weight for rule in (Magnitude(), Wanda()))
        gains.append(error(inputs, dense, plain) / error(inputs, dense, ours))
    assert min(gains) > 1.2


def test_published_wanda_rounds_every_row_down() -> None:
    dense, inputs = layer(4, rows=10, columns=96)
    moments = problem(dense, inputs, Budget()).moments
    mask = wanda_mask(dense, moments.norms, Budget(remove=round(0.7 * 960)), reference=True)
    assert mask.sum(dim=1).tolist() == [67] * 10  # int(96 * 0.7)
    half = Budget(remove=480)
    assert torch.equal(
        wanda_mask(dense, moments.norms, half, reference=True), wanda_mask(dense, moments.norms, half)
    )
    assert not wanda_mask(dense, moments.norms, Budget(remove=0), reference=True).any()


def test_ria_scores_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.0, 1.0]])
    scores = ria_scores(weight, torch.tensor([4.0, 9.0], dtype=torch.float64))
    expected = torch.tensor([[(1 / 4 + 1 / 1) * 2, (3 / 4 + 3 / 4) * 3], [0.0, (1 / 1 + 1 / 4) * 3]])
    assert torch.allclose(scores, expected)
    assert torch.equal(ria_scores(weight, torch.ones(2), 0.0), ria_scores(weight, torch.full((2,), 5.0), 0.0))


def test_ria_with_equal_sums_is_wanda_of_half_the_norm() -> None:
    """Where all rows and columns have one sum, relative importance is magnitude."""
    generator = torch.Generator().manual_seed(5)
    base = torch.rand(12, generator=generator) + 0.1
    weight = torch.stack([base.roll(row) for row in range(12)])
    norms = torch.rand(12, generator=generator, dtype=torch.float64)
    budget = Budget(remove=70)
    assert torch.equal(ria_mask(weight, norms, budget), smallest(wanda_scores(weight, norms.sqrt()), 70))
    grouped = Budget(keep=1, group=3)
    assert torch.equal(
        ria_mask(weight, norms, grouped), smallest_in_groups(wanda_scores(weight, norms.sqrt()), 1, 3)
    )


def test_empty_rows_and_columns_go_first_without_nan() -> None:
    weight, _ = layer(6, rows=6, columns=12)
    weight[2], weight[:, 5] = 0, 0
    mask = ria_mask(weight, torch.ones(12, dtype=torch.float64), Budget(remove=17))
    assert bool(mask[2].all()) and bool(mask[:, 5].all())


def test_published_ria_takes_one_more() -> None:
    dense, inputs = layer(7)
    norms = problem(dense, inputs, Budget()).moments.norms
    assert int(ria_mask(dense, norms, Budget(remove=1000), reference=True).sum()) == 1001
    assert not ria_mask(dense, norms, Budget(remove=0), reference=True).any()
