"""The identities that pin SparseGPT, on small random layers."""

from __future__ import annotations

import itertools

import pytest
import torch

from methods.layerwise.magnitude import magnitude_mask
from methods.layerwise.rule import Budget
from methods.layerwise.select import smallest
from methods.layerwise.sparsegpt import sparsegpt
from methods.moments import factorise

_ROWS, _COLUMNS = 24, 96


def _layer(seed: int, rows: int = _ROWS, columns: int = _COLUMNS) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and correlated inputs with a few strong features."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    inputs[:, ::7] *= 4
    return torch.randn(rows, columns, generator=generator), inputs


def _error(inputs: torch.Tensor, dense: torch.Tensor, pruned: torch.Tensor) -> float:
    return float(((inputs.double() @ (dense - pruned).double().T) ** 2).sum())


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 3), (5, 12)])
def test_nm_does_not_depend_on_the_block_size(pattern: tuple[int, int]) -> None:
    dense, inputs = _layer(0)
    factor = factorise((inputs.T @ inputs).double(), 0.01)
    budget = Budget(keep=pattern[0], group=pattern[1])
    results = [sparsegpt(dense.clone(), factor, budget, blocksize=size) for size in (pattern[1], 24, 96, 500)]
    for weight, mask, _ in results[1:]:
        assert torch.equal(mask, results[0][1])
        assert torch.allclose(weight, results[0][0], rtol=1e-4, atol=1e-5)
    groups = results[0][1].view(_ROWS, -1, pattern[1]).sum(-1)
    assert (groups == pattern[1] - pattern[0]).all()


def test_identity_hessian_in_one_block_is_magnitude_pruning() -> None:
    dense, _ = _layer(1)
    factor = factorise(torch.eye(_COLUMNS), 0.0)
    budget = Budget(remove=1000)
    weight, mask, _ = sparsegpt(dense.clone(), factor, budget, blocksize=_COLUMNS)
    expected = magnitude_mask(dense, budget)
    assert torch.equal(mask, expected)
    assert torch.equal(weight, dense.masked_fill(expected, 0))


@pytest.mark.parametrize("blocksize", [1, 32, 128])
def test_zero_sparsity_changes_nothing(blocksize: int) -> None:
    dense, inputs = _layer(2)
    factor = factorise(inputs.T @ inputs, 0.01)
    weight, mask, loss = sparsegpt(dense.clone(), factor, Budget(remove=0), blocksize=blocksize)
    assert torch.equal(weight, dense) and not mask.any() and loss == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("blocksize", [7, 32, 96, 128])
def test_every_block_loses_its_exact_share(share: float, blocksize: int) -> None:
    dense, inputs = _layer(3)
    count = round(share * dense.numel())
    weight, mask, _ = sparsegpt(
        dense.clone(), factorise(inputs.T @ inputs, 0.01), Budget(remove=count), blocksize=blocksize
    )
    assert int(mask.sum()) == count
    assert bool((weight[mask] == 0).all())
    assert not bool(torch.signbit(weight[mask]).any()), "negative zeros break 2:4 compression"
    for start in range(0, _COLUMNS, blocksize):
        stop = min(start + blocksize, _COLUMNS)
        lost = int(mask[:, start:stop].sum())
        assert abs(lost - share * _ROWS * (stop - start)) <= 1


def test_least_squares_beats_sparsegpt_beats_no_update_for_one_mask() -> None:
    """Exact least squares on the same mask is a lower bound; no update is worse on average over seeds."""
    gains = []
    for seed in range(6):
        dense, inputs = _layer(seed, rows=6, columns=40)
        hessian = (inputs.T @ inputs).double()
        weight, mask, _ = sparsegpt(dense.clone(), factorise(hessian, 1e-8), Budget(remove=120), blocksize=40)
        best = torch.zeros_like(dense)
        for row in range(len(dense)):
            kept = ~mask[row]
            solved = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ dense[row].double())
            best[row, kept] = solved.float()
        lower, ours, none = (
            _error(inputs, dense, other) for other in (best, weight, dense.masked_fill(mask, 0))
        )
        assert lower <= ours * (1 + 1e-6)
        gains.append(none / ours)
    assert sum(gains) / len(gains) > 1


def test_one_removed_weight_is_the_exact_brain_surgeon() -> None:
    """Removing one weight of the last column moves nothing; of the first, every other weight as OBS says."""
    dense, inputs = _layer(5, rows=1, columns=12)
    hessian = (inputs.T @ inputs).double()
    factor = factorise(hessian, 1e-9)
    inverse = torch.linalg.inv(hessian)
    scores = dense[0].double().square() / inverse.diagonal()
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 0] = True
    from methods.kernels.operators import obs_sweep

    swept = obs_sweep(dense, factor.upper, mask=mask).values
    expected = dense[0].double() - dense[0, 0].double() / inverse[0, 0] * inverse[:, 0]
    assert torch.allclose(swept[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert _error(inputs, dense, swept) == pytest.approx(float(scores[0]), rel=1e-4)


def test_the_loss_is_half_the_rise_of_the_damped_form() -> None:
    dense, inputs = _layer(6)
    hessian = (inputs.T @ inputs).double()
    factor = factorise(hessian, 0.01)
    weight, _, loss = sparsegpt(dense.clone(), factor, Budget(remove=1100), blocksize=32)
    change = (dense - weight).double()
    damped = hessian + factor.added * torch.eye(_COLUMNS, dtype=torch.float64)
    assert loss == pytest.approx(float((change @ damped * change).sum()) / 2, rel=1e-4)


def test_dead_inputs_lose_their_weights_first_but_no_more_than_asked() -> None:
    dense, inputs = _layer(7)
    inputs[:, [3, 50]] = 0
    factor = factorise(inputs.T @ inputs, 0.01)
    weight, mask, _ = sparsegpt(dense.clone(), factor, Budget(remove=dense.numel() // 2), blocksize=96)
    assert bool(mask[:, [3, 50]].all())
    few, mask, _ = sparsegpt(dense.clone(), factor, Budget(remove=10), blocksize=96)
    assert int(mask.sum()) == 10 and bool(mask[:, [3, 50]].sum() == 10)
    assert torch.equal(few[~mask], dense[~mask]), "weights without input are not moved"
    assert bool(torch.isfinite(weight).all())


def test_huge_and_tiny_weights_stay_finite() -> None:
    dense, inputs = _layer(8)
    dense[:, 0] *= 1e18
    dense[:, 1] *= 1e-30
    factor = factorise(inputs.T @ inputs, 0.01)
    weight, mask, _ = sparsegpt(dense.clone(), factor, Budget(remove=500), blocksize=32)
    assert bool(torch.isfinite(weight).all()) and int(mask.sum()) == 500


def test_magnitude_ties_go_by_index_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 1.0, -1.0, 0.5]], dtype=dtype)
        mask = magnitude_mask(weight, Budget(remove=3))
        assert mask.flatten().tolist() == [True, True, False, False, False, False, False, True]


def test_reference_magnitude_takes_everything_at_the_threshold() -> None:
    weight = torch.tensor([[1.0, 2.0, 2.0, 3.0]])
    assert int(magnitude_mask(weight, Budget(remove=1), reference=True).sum()) == 3
    assert int(magnitude_mask(weight, Budget(remove=0), reference=True).sum()) == 0


@pytest.mark.parametrize(("seed", "share"), list(itertools.product(range(3), (0.5, 0.7))))
def test_sparsegpt_beats_magnitude_on_correlated_inputs(seed: int, share: float) -> None:
    dense, inputs = _layer(seed)
    budget = Budget(remove=round(share * dense.numel()))
    ours, _, _ = sparsegpt(dense.clone(), factorise(inputs.T @ inputs, 0.01), budget)
    plain = dense.masked_fill(smallest(dense.abs(), budget.remove), 0)
    assert _error(inputs, dense, ours) < _error(inputs, dense, plain)
