"""ISC: the sum of brain-damage and brain-surgeon saliencies, in the sweep and against the equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.layerwise.rule import Budget
from methods.layerwise.saliency import divisors
from methods.layerwise.select import block_share, smallest, smallest_in_groups
from methods.layerwise.sparsegpt import sparsegpt
from methods.moments import factorise

ROWS, COLUMNS = 10, 48


def layer(seed: int) -> tuple[Tensor, Tensor]:
    """Weights and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5 + torch.eye(COLUMNS)
    inputs = torch.randn(200, COLUMNS, generator=generator) @ mixing
    inputs[:, ::5] *= 3
    return torch.randn(ROWS, COLUMNS, generator=generator), (inputs.T @ inputs).double()


def damped(hessian: Tensor, percdamp: float) -> Tensor:
    return hessian + percdamp * hessian.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)


def equation(saliency: str, hessian: Tensor) -> Tensor:
    """c [columns] of w² c, with inverses formed whole."""
    inverse = torch.linalg.inv(hessian).diagonal()
    # the j-th pivot: the inverse of the part of H that starts at column j
    pivots = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(COLUMNS)])
    return {
        "obs": 1 / pivots,
        "isc": hessian.diagonal() + 1 / pivots,
        "isc-literal": hessian.diagonal() + 1 / inverse,
    }[saliency]


@pytest.mark.parametrize("saliency", ["obs", "isc", "isc-literal"])
def test_divisors_are_those_of_the_equation(saliency: str) -> None:
    _, hessian = layer(0)
    found = divisors(factorise(hessian, 0.01), saliency)
    assert found.dtype == torch.float32
    wanted = equation(saliency, damped(hessian, 0.01))
    torch.testing.assert_close(found.double().square().reciprocal(), wanted, rtol=1e-4, atol=0)


def test_the_saliencies_differ_and_isc_lies_between_its_terms() -> None:
    _, hessian = layer(1)
    factor = factorise(hessian, 0.01)
    isc = divisors(factor, "isc").double().square().reciprocal()
    obs = divisors(factor, "obs").double().square().reciprocal()
    assert bool((obs <= factor.diagonal * (1 + 1e-5)).all()), "1 / [H⁻¹]_mm never exceeds H_mm"
    assert bool(((isc > factor.diagonal) & (isc <= 2.0001 * factor.diagonal)).all())
    literal = divisors(factor, "isc-literal").double().square().reciprocal()
    assert bool((literal <= isc * (1 + 1e-5)).all()), "a pivot is at most the whole inverse's entry"
    assert not torch.allclose(literal, isc)


@pytest.mark.parametrize("saliency", ["obs", "isc", "isc-literal"])
@pytest.mark.parametrize("group", [0, 8])
def test_the_first_block_removes_what_the_equation_ranks_lowest(saliency: str, group: int) -> None:
    dense, hessian = layer(2)
    budget = Budget(keep=3, group=8) if group else Budget(remove=200)
    _, mask, _ = sparsegpt(dense.clone(), factorise(hessian, 0.01), budget, blocksize=8, saliency=saliency)
    scores = dense[:, :8].double().square() * equation(saliency, damped(hessian, 0.01))[:8]
    if group:
        wanted = smallest_in_groups(scores, 3, 8)
    else:
        wanted = smallest(scores, block_share(200, dense.numel(), 0, 8 * ROWS))
    assert torch.equal(mask[:, :8], wanted)


def test_isc_is_another_choice_than_obs_with_the_same_counts() -> None:
    dense, hessian = layer(3)
    factor = factorise(hessian, 0.01)
    for budget in (Budget(remove=240), Budget(keep=2, group=4)):
        _, obs, _ = sparsegpt(dense.clone(), factor, budget)
        _, isc, _ = sparsegpt(dense.clone(), factor, budget, saliency="isc")
        assert int(isc.sum()) == int(obs.sum()) == 240
        assert not torch.equal(isc, obs)


@pytest.mark.parametrize("saliency", ["isc", "isc-literal"])
def test_nm_does_not_depend_on_the_block_size(saliency: str) -> None:
    dense, hessian = layer(4)
    factor = factorise(hessian, 0.01)
    results = [
        sparsegpt(dense.clone(), factor, Budget(keep=4, group=8), blocksize=size, saliency=saliency)
        for size in (8, 24, 48, 128)
    ]
    for weight, mask, _ in results[1:]:
        assert torch.equal(mask, results[0][1])
        torch.testing.assert_close(weight, results[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("saliency", ["isc", "isc-literal"])
def test_dead_inputs_go_first(saliency: str) -> None:
    dense, hessian = layer(5)
    hessian[[3, 20]] = 0
    hessian[:, [3, 20]] = 0
    factor = factorise(hessian, 0.01)
    assert factor.diagonal[[3, 20]].tolist() == [0, 0]
    weight, mask, _ = sparsegpt(dense.clone(), factor, Budget(remove=30), blocksize=48, saliency=saliency)
    assert bool(mask[:, [3, 20]].all())
    assert int(mask.sum()) == 30
    assert bool(weight.isfinite().all())


def test_the_diagonal_holds_the_damping_that_was_needed() -> None:
    columns = torch.ones(4, 4, dtype=torch.float32)  # rank 1: does not factor undamped
    factor = factorise(columns, 0.0)
    assert factor.escalations > 0
    torch.testing.assert_close(factor.diagonal, torch.full((4,), 1 + factor.added))


def test_identity_hessian_is_magnitude_pruning_under_every_saliency() -> None:
    dense, _ = layer(6)
    factor = factorise(torch.eye(COLUMNS), 0.0)
    for saliency in ("obs", "isc", "isc-literal"):
        _, mask, _ = sparsegpt(dense.clone(), factor, Budget(remove=100), saliency=saliency)
        assert torch.equal(mask, smallest(dense.abs(), 100))


def test_an_unknown_saliency_is_named() -> None:
    _, hessian = layer(7)
    with pytest.raises(ValueError, match="saliency 'isq' is unknown; use obs, isc, isc-literal"):
        divisors(factorise(hessian, 0.01), "isq")
