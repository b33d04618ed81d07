"""DSnoT: against the slow obvious twin, and what it promises of counts and errors."""

from __future__ import annotations

import math

import pytest
import torch
from layers import layer, problem

from methods.layerwise.rule import Budget
from methods.layerwise.sparsegpt import SparseGPT
from methods.layerwise.wanda import Wanda
from methods.refine import dsnot as module
from methods.refine.dsnot import DSnoT, swap


def _twin(
    contribution: torch.Tensor,
    pull: torch.Tensor,
    saliency: torch.Tensor,
    mask: torch.Tensor,
    cycles: int,
    threshold: float,
    group: int,
) -> torch.Tensor:
    """One row at a time, one candidate at a time, by plain loops over lists."""
    result = mask.clone()
    for row in range(len(mask)):
        d, grows, cost = contribution[row].tolist(), pull[row].tolist(), saliency[row].tolist()
        gone = mask[row].tolist()
        pool = {j for j in range(len(d)) if gone[j]}
        kept = {j for j in range(len(d)) if not gone[j]}
        error = float(contribution[row].masked_fill(~mask[row], 0).sum())
        for _ in range(cycles):
            if abs(error) <= threshold:
                break
            sign = 1 if error > 0 else -1
            candidates = [j for j in sorted(pool) if d[j] * sign > 0]
            if not candidates:
                break
            grow = max(candidates, key=lambda j: (grows[j], -j))
            others = [j for j in sorted(kept) if d[j] * sign < 0]
            if group:
                others = [j for j in others if j // group == grow // group]
            if not others:
                if not group:
                    break
                pool.remove(grow)
                continue
            drop = min(others, key=lambda j: (cost[j], j))
            after = error - d[grow] + d[drop]
            if abs(after) >= abs(error):
                break
            error = after
            pool.remove(grow)
            kept.remove(drop)
            result[row, grow], result[row, drop] = False, True
    return result


@pytest.mark.parametrize("group", [0, 4, 12])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("cycles", "threshold"), [(50, 0.1), (3, 0.0), (1000, 0.0), (0, 0.0)])
def test_it_is_its_twin(group: int, seed: int, cycles: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = 9, 36
    contribution = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if seed % 2:  # coarse values: many ties, many zeros
        contribution = (contribution * 2).round()
    pull = contribution.abs() / torch.randint(0, 3, (columns,), generator=generator)
    pull[contribution == 0] = 0
    saliency = torch.randint(0, 9, (rows, columns), generator=generator).double()
    mask = torch.rand(rows, columns, generator=generator) < 0.6
    mask[0], mask[1] = True, False
    found = swap(contribution, pull, saliency, mask, cycles=cycles, threshold=threshold, group=group)
    assert torch.equal(found, _twin(contribution, pull, saliency, mask, cycles, threshold, group))
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))


def _expected_errors(dense: torch.Tensor, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """|Σ over removed of W_ij Σ_t x_tj| of every row."""
    return (dense.masked_fill(~mask, 0).double() @ inputs.double().sum(dim=0)).abs()


@pytest.mark.parametrize("budget", [Budget(remove=1400), Budget(keep=2, group=4)], ids=str)
def test_counts_stay_and_expected_errors_fall(budget: Budget) -> None:
    dense, inputs = layer(0)
    given = problem(dense, inputs, budget)
    before = Wanda().solve(given).mask
    after = DSnoT()(given, before)
    assert torch.equal(given.weight, dense)
    assert torch.equal(before.sum(dim=1), after.sum(dim=1)) and not torch.equal(before, after)
    if budget.group:
        assert (after.view(24, -1, budget.group).sum(-1) == 2).all()
    old, new = (_expected_errors(dense, inputs, mask) for mask in (before, after))
    assert bool((new <= old * (1 + 1e-9)).all())
    assert float(new.sum()) < 0.5 * float(old.sum())


def test_no_cycles_and_a_high_threshold_change_nothing() -> None:
    dense, inputs = layer(1)
    given = problem(dense, inputs, Budget(remove=900))
    mask = Wanda().solve(given).mask
    assert torch.equal(DSnoT(cycles=0)(given, mask), mask)
    assert torch.equal(DSnoT(threshold=1e9)(given, mask), mask)


def test_centred_inputs_give_it_nothing_to_do() -> None:
    dense, inputs = layer(2)
    given = problem(dense, torch.cat([inputs, -inputs]), Budget(remove=900))
    mask = Wanda().solve(given).mask
    assert torch.equal(DSnoT(threshold=1e-3)(given, mask), mask)


def test_constant_and_dead_inputs_make_no_nan() -> None:
    dense, inputs = layer(3)
    inputs[:, 5], inputs[:, 6] = 2.0, 0.0
    given = problem(dense, inputs, Budget(remove=2000))
    mask = torch.zeros(24, 96, dtype=torch.bool)
    mask[:, 5:88] = True
    after = DSnoT(cycles=1, threshold=0.0)(given, mask)
    assert int(after.sum()) == 24 * 83
    changed = (after ^ mask).any(dim=1)
    sums = dense.double() * inputs.double().sum(dim=0)
    same = (sums[:, 5] > 0) == (sums.masked_fill(~mask, 0).sum(dim=1) > 0)
    assert bool((~after[changed & same, 5]).all()), "a constant input comes back first"
    assert int((changed & same).sum()) > 0 and bool(after[:, 6].all())


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, inputs = layer(4)
    given = problem(dense, inputs, Budget(remove=1000))
    mask = Wanda().solve(given).mask
    whole = DSnoT()(given, mask)
    monkeypatch.setattr(module, "_PIECE", 5 * 96)
    assert torch.equal(DSnoT()(given, mask), whole)


def test_a_window_is_the_unit_of_its_threshold() -> None:
    """Twice as many windows of the same text leave the swaps as they are; doubled windows count double."""
    dense, inputs = layer(5)
    once, twice = (problem(dense, inputs, Budget(remove=1000)) for _ in range(2))
    twice.moments.add(inputs[None])
    mask = Wanda().solve(once).mask
    assert torch.equal(DSnoT()(once, mask), DSnoT()(twice, mask))
    assert once.moments.length == twice.moments.length == len(inputs)
    assert math.isclose(
        problem(dense, torch.cat([inputs, inputs]), Budget()).moments.length, 2 * once.moments.length
    )


def test_sparsegpt_sweeps_the_refined_mask() -> None:
    dense, inputs = layer(6)
    given = problem(dense, inputs, Budget(remove=1152))
    rule = SparseGPT(blocksize=32)
    mask = rule.solve(problem(dense, inputs, given.budget)).mask
    refined = DSnoT()(given, mask)
    assert not torch.equal(refined, mask)
    solved = rule.update(given, refined)
    assert torch.equal(solved.mask, refined) and bool((solved.weight[refined] == 0).all())
