"""ALPS: near the exact least squares of its support, below SparseGPT's errors, never above its start's."""

from __future__ import annotations

import pytest
import torch
from layers import error, layer, problem

from methods.errors import HessianError, NonFiniteError
from methods.layerwise import alps as module
from methods.layerwise.alps import ALPS, admm, conjugate_gradients
from methods.layerwise.rule import Budget, Problem
from methods.layerwise.select import lowest
from methods.layerwise.sparsegpt import SparseGPT
from methods.moments import decompose


def _least_squares(given: Problem, mask: torch.Tensor, added: float) -> torch.Tensor:
    """The exact minimum for a support, row by row, of the damped quadratic form; float64."""
    assert given.moments is not None
    dense = given.weight.double()
    hessian = given.moments.gram.matrix.double()
    hessian = hessian + added * torch.eye(len(hessian), dtype=torch.float64)
    best = torch.zeros_like(dense)
    for row in range(len(dense)):
        kept = ~mask[row]
        best[row, kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ dense[row])
    return best


def _damped(given: Problem, pruned: torch.Tensor, added: float) -> float:
    assert given.moments is not None
    change = given.weight.double() - pruned.double()
    hessian = given.moments.gram.matrix.double()
    return float(((change @ hessian) * change).sum() + added * change.square().sum())


def _start(given: Problem) -> torch.Tensor:
    """ADMM's first support, without update: the largest |W_ij| · scale_j stay."""
    assert given.moments is not None
    dense = given.weight * given.moments.eigen(0.01).scale
    return given.weight.masked_fill(lowest(dense.square(), given.budget), 0)


_BUDGETS = [Budget(remove=round(share * 24 * 96)) for share in (0.3, 0.5, 0.7, 0.9)]
_PATTERNS = [Budget(keep=2, group=4), Budget(keep=1, group=3), Budget(keep=5, group=12)]


@pytest.mark.parametrize("budget", [*_BUDGETS, *_PATTERNS], ids=str)
def test_budgets_are_exact(budget: Budget) -> None:
    dense, inputs = layer(0)
    given = problem(dense, inputs, budget)
    solved = ALPS().solve(given)
    assert int(solved.mask.sum()) == budget.count(given.matrix)
    assert bool((solved.weight[solved.mask] == 0).all()) and bool((solved.weight[~solved.mask] != 0).all())
    assert torch.equal(given.weight, dense), "what it is given is only read"
    if budget.group:
        assert (solved.mask.view(24, -1, budget.group).sum(-1) == budget.group - budget.keep).all()
    assert solved.factor is not None and solved.factor.damping == 0.01


@pytest.mark.parametrize("budget", [_BUDGETS[1], _BUDGETS[2], _PATTERNS[0]], ids=str)
def test_on_its_support_it_is_close_to_exact_least_squares(budget: Budget) -> None:
    for seed in range(3):
        dense, inputs = layer(seed)
        given = problem(dense, inputs, budget)
        solved = ALPS().solve(given)
        added = given.moments.eigen(0.01).added
        best = _damped(given, _least_squares(given, solved.mask, added), added)
        assert best * (1 - 1e-6) <= _damped(given, solved.weight, added) <= 1.001 * best
        again = ALPS().update(given, solved.mask)
        assert torch.equal(again.mask, solved.mask)
        assert _damped(given, again.weight, added) <= 1.001 * best


@pytest.mark.parametrize("budget", [Budget(remove=round(0.7 * 24 * 96)), Budget(keep=2, group=4)], ids=str)
def test_errors_are_below_sparsegpts_on_average(budget: Budget) -> None:
    ratios = []
    for seed in range(6):
        dense, inputs = layer(seed)
        ours, theirs = (
            error(inputs, dense, rule.solve(problem(dense, inputs, budget)).weight)
            for rule in (ALPS(), SparseGPT(blocksize=32))
        )
        ratios.append(ours / theirs)
    assert sum(ratios) / len(ratios) <= 0.9


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.99])
def test_never_worse_than_its_start_without_update(share: float) -> None:
    for seed in range(4):
        dense, inputs = layer(seed, rows=8, columns=24)
        given = problem(dense, inputs, Budget(remove=round(share * 192)))
        solved = ALPS().solve(given)
        assert error(inputs, dense, solved.weight) <= error(inputs, dense, _start(given)) * (1 + 1e-5)


def test_a_support_that_is_worse_gives_way_to_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, inputs = layer(1)
    given = problem(dense, inputs, Budget(remove=1500))
    worst = torch.zeros(24, 96, dtype=torch.bool)
    worst[:, ::7] = True
    worst[:, 1:55] = True
    monkeypatch.setattr(module, "admm", lambda values, *_, **__: (values, worst))
    solved = ALPS().solve(given)
    assert torch.equal(solved.mask, _start(given) == 0)
    assert error(inputs, dense, solved.weight) < error(inputs, dense, _start(given))
    monkeypatch.setattr(module, "conjugate_gradients", lambda start, dense, normalised, mask, steps: -start)
    assert torch.equal(ALPS().solve(given).weight, _start(given))


def test_identity_hessian_leaves_the_largest_weights_as_they_are() -> None:
    dense, _ = layer(2)
    given = problem(dense, torch.eye(96) * 3, Budget(remove=1000))
    solved = ALPS().solve(given)
    expected = lowest(dense.abs(), given.budget)
    assert torch.equal(solved.mask, expected)
    assert torch.allclose(solved.weight, dense.masked_fill(expected, 0), atol=1e-6)


@pytest.mark.parametrize("budget", [Budget(remove=0), Budget(remove=24 * 96)], ids=str)
def test_nothing_and_everything(budget: Budget) -> None:
    dense, inputs = layer(3)
    solved = ALPS().solve(problem(dense, inputs, budget))
    assert torch.equal(solved.weight, dense if not budget.remove else torch.zeros_like(dense))
    assert int(solved.mask.sum()) == budget.remove


def test_dead_inputs_go_first_and_are_not_moved() -> None:
    dense, inputs = layer(4)
    inputs[:, [3, 50]] = 0
    assert bool(ALPS().solve(problem(dense, inputs, Budget(remove=1200))).mask[:, [3, 50]].all())
    few = ALPS().solve(problem(dense, inputs, Budget(remove=10)))
    assert int(few.mask[:, [3, 50]].sum()) == 10
    kept = ~few.mask[:, [3, 50]]
    assert torch.equal(few.weight[:, [3, 50]][kept], dense[:, [3, 50]][kept])
    nothing = ALPS().solve(problem(dense, torch.zeros(5, 96), Budget(remove=100)))
    assert int(nothing.mask.sum()) == 100 and torch.equal(nothing.weight[~nothing.mask], dense[~nothing.mask])


def test_hostile_numbers_stay_finite() -> None:
    dense, inputs = layer(5)
    inputs[:, 7] *= 1e6
    inputs[:, 8] *= 1e-6
    dense[:, 9] = 0
    dense[3] = 0
    inputs[:, 20] = inputs[:, 21]
    solved = ALPS(percdamp=0.0).solve(problem(dense, inputs, Budget(remove=1200)))
    assert bool(torch.isfinite(solved.weight).all()) and int(solved.mask.sum()) == 1200
    inputs[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="block 0 fc1: its calibration inputs hold NaN or infinity"):
        ALPS().solve(problem(dense, inputs, Budget(remove=1200)))


def test_the_decomposition_is_the_damped_hessian() -> None:
    _, inputs = layer(6)
    hessian = (inputs.T @ inputs).double()
    eigen = decompose(hessian, 0.05)
    assert eigen.added == pytest.approx(0.05 * float(hessian.diagonal().mean()))
    damped = hessian + eigen.added * torch.eye(96, dtype=torch.float64)
    rebuilt = (eigen.vectors * eigen.values) @ eigen.vectors.T * eigen.scale * eigen.scale[:, None]
    assert torch.allclose(rebuilt, damped, rtol=1e-5, atol=1e-5 * float(damped.max()))
    assert bool((eigen.normalised.diagonal() == 1).all())
    product = eigen.inverse(0.3).double() @ (eigen.normalised.double() + 0.3 * torch.eye(96))
    assert torch.allclose(product, torch.eye(96, dtype=torch.float64), atol=1e-5)


def test_one_decomposition_serves_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, inputs = layer(7)
    given = problem(dense, inputs, Budget(remove=100))
    assert given.moments.eigen(0.01) is given.moments.eigen(0.01)
    assert given.moments.eigen(0.1) is not given.moments.eigen(0.01)

    def fails(_: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("it did not converge\nfor reasons")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(
        HessianError, match=r"block 0 fc1: the eigenvalues of the Hessian do not converge \(it did"
    ):
        ALPS(percdamp=0.2).solve(given)


def test_gradients_solve_exactly_in_as_many_steps_as_weights() -> None:
    dense, inputs = layer(8, rows=5, columns=12)
    given = problem(dense, inputs, Budget())
    eigen = given.moments.eigen(0.01)
    mask = torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[4] = True
    scaled = dense * eigen.scale
    solved = conjugate_gradients(scaled, scaled, eigen.normalised, mask, 12) / eigen.scale
    assert torch.allclose(solved.double(), _least_squares(given, mask, eigen.added), atol=1e-5)
    errors = [
        _damped(
            given, conjugate_gradients(scaled, scaled, eigen.normalised, mask, n) / eigen.scale, eigen.added
        )
        for n in range(6)
    ]
    assert errors == sorted(errors, reverse=True) and errors[5] < errors[0]


def test_more_iterations_than_the_penalty_needs_change_nothing() -> None:
    dense, inputs = layer(9)
    given = problem(dense, inputs, Budget(remove=1600))
    eigen = given.moments.eigen(0.01)
    scaled = dense * eigen.scale
    long, longer = (admm(scaled, eigen, given.budget, iterations=n)[1] for n in (300, 900))
    assert torch.equal(long, longer)
    assert not torch.equal(admm(scaled, eigen, given.budget, iterations=1)[1], long)
