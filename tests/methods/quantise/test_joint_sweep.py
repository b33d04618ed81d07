"""Pruning and quantisation in one sweep: identities, and a slow loop over single columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layers import error, layer, problem
from torch import Tensor

from methods.errors import UserError
from methods.layerwise.pruner import layerwise
from methods.layerwise.rule import Budget
from methods.layerwise.sparsegpt import SparseGPT, sparsegpt, sweep_matrix
from methods.moments import Factor, factorise
from methods.quantise.grid import GridMaker, MatrixGrid, dequantise, quantise
from methods.target import Target


def _factor(inputs: Tensor) -> Factor:
    return factorise(inputs.T @ inputs, 0.01)


def _slow(weight: Tensor, factor: Factor, mask: Tensor, maker: GridMaker) -> tuple[Tensor, Tensor]:
    """Column by column over the whole matrix, in float64, each error spread at once; grids at each group's start."""
    current, upper = weight.double(), factor.upper.double()
    columns = weight.shape[1]
    size = maker.groupsize or columns
    values, scales = torch.zeros_like(current), []
    for j in range(columns):
        if j % size == 0:
            scale, zero = (part.double() for part in maker(current[:, j : j + size].float()))
            scales.append(scale)
        kept = current[:, j].masked_fill(mask[:, j], 0)
        level = (torch.round(kept / scale) + zero).clamp(0, 2**maker.bits - 1)
        values[:, j] = scale * (level - zero)
        off = (current[:, j] - values[:, j]) / upper[j, j]
        current[:, j:] -= off[:, None] * upper[j, j:]
    return values, torch.stack(scales, dim=1)


@pytest.mark.parametrize("blocksize", [7, 32, 128])
@pytest.mark.parametrize(
    ("groupsize", "search"), [(0, "minmax"), (4, "minmax"), (24, "mse"), (40, "minmax"), (200, "mse")]
)
def test_the_sweep_is_the_slow_loop(blocksize: int, groupsize: int, search: str) -> None:
    """Blocks and groups of any size: what they cut never shows."""
    dense, inputs = layer(0)
    factor = _factor(inputs)
    mask = torch.rand(dense.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    maker = GridMaker(4, groupsize, search)
    swept = sweep_matrix(dense.clone(), factor, Budget(), blocksize=blocksize, grid=maker, mask=mask)
    values, scales = _slow(dense, factor, mask, maker)
    assert swept.grid is not None and swept.grid.scale.shape == scales.shape
    # a level may flip where float32 and float64 round apart, and its row goes on from there
    same = ((swept.weight - values).abs() < 1e-3).all(dim=1)
    assert int(same.sum()) >= len(dense) - 2
    assert torch.allclose(swept.grid.scale[same].double(), scales[same], rtol=1e-3)
    assert torch.equal(swept.weight == 0, swept.weight.abs() == 0)
    assert bool((swept.weight[mask] == 0).all())


@pytest.mark.parametrize(
    "budget", [Budget(remove=1000), Budget(keep=2, group=4), Budget(keep=3, group=8), Budget()]
)
@pytest.mark.parametrize("groupsize", [0, 8, 64])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_every_weight_lies_on_its_grid_and_removed_ones_are_zero(
    budget: Budget, groupsize: int, bits: int
) -> None:
    dense, inputs = layer(2)
    maker = GridMaker(bits, groupsize)
    weight, mask, _, grid = sweep_matrix(dense.clone(), _factor(inputs), budget, blocksize=32, grid=maker)
    assert grid is not None and grid.bits == bits
    assert torch.equal(dequantise(quantise(weight, grid), grid), weight)
    assert bool((weight[mask] == 0).all()) and not bool(torch.signbit(weight[mask]).any())
    asked = 1000 if budget.remove else dense.numel() * (budget.group - budget.keep) // max(1, budget.group)
    assert int(mask.sum()) == (asked if budget != Budget() else 0)


def _identity(rows: int) -> MatrixGrid:
    """A grid that holds every whole number up to 32,767: it changes none of them."""
    return MatrixGrid(torch.ones(rows, 1), torch.full((rows, 1), 32768.0), 16, 96)


@pytest.mark.parametrize("blocksize", [7, 32, 128])
@pytest.mark.parametrize("budget", [None, Budget(remove=1100), Budget(keep=2, group=4)])
def test_an_identity_quantiser_is_the_plain_sweep_bit_for_bit(blocksize: int, budget: Budget | None) -> None:
    """Whole weights and a factor of whole numbers with ones on the diagonal: all that is swept stays whole."""
    generator = torch.Generator().manual_seed(3)
    dense = torch.randint(-9, 10, (24, 96), generator=generator).float()
    # few and short chains of compensation, so that sums stay below 2^15
    upper = torch.triu((torch.rand(96, 96, generator=generator) < 0.03).float(), 1) + torch.eye(96)
    factor = Factor(upper, 0.0, 0.0, torch.zeros(96, dtype=torch.bool), 0)
    mask = torch.rand(dense.shape, generator=generator) < 0.5 if budget is None else None
    plain, joint = (
        sparsegpt(dense.clone(), factor, budget or Budget(), blocksize=blocksize, mask=mask, grid=grid)
        for grid in (None, _identity(24))
    )
    assert float(plain[0].abs().max()) < 32767
    assert not torch.equal(plain[0], dense.masked_fill(plain[1], 0)), "some weight was compensated"
    assert torch.equal(plain[0], joint[0]) and torch.equal(plain[1], joint[1])
    assert plain[2] == joint[2]


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_sixteen_bits_on_four_times_the_range_change_next_to_nothing(pattern: tuple[int, int] | None) -> None:
    dense, inputs = layer(4)
    factor = _factor(inputs)
    budget = Budget(keep=pattern[0], group=pattern[1]) if pattern else Budget(remove=dense.numel() // 2)
    grid = GridMaker(16).whole(4 * dense)
    plain, _, _ = sparsegpt(dense.clone(), factor, budget, blocksize=32)
    joint, mask, _ = sparsegpt(dense.clone(), factor, budget, blocksize=32, grid=grid)
    before, after = (error(inputs, dense, weight) for weight in (plain, joint))
    assert abs(after - before) / before < 1e-4
    assert not torch.equal(plain, joint) and int(mask.sum()) == dense.numel() // 2


def test_sweeping_beats_rounding_to_nearest() -> None:
    for bits in (2, 3, 4):
        gains = []
        for seed in range(4):
            dense, inputs = layer(seed)
            grid = GridMaker(bits).whole(dense)
            swept, _, _ = sparsegpt(dense.clone(), _factor(inputs), Budget(), grid=grid)
            nearest = dequantise(quantise(dense, grid), grid)
            gains.append(error(inputs, dense, nearest) / error(inputs, dense, swept))
        assert sum(gains) / len(gains) > 1.2


def test_smaller_groups_and_more_bits_err_less() -> None:
    dense, inputs = layer(5)
    factor = _factor(inputs)
    half = Budget(remove=dense.numel() // 2)

    def off(bits: int, groupsize: int) -> float:
        swept, _, _ = sparsegpt(dense.clone(), factor, half, grid=GridMaker(bits, groupsize))
        return error(inputs, dense, swept)

    by_bits = [off(bits, 0) for bits in (2, 3, 4, 8)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert off(3, 8) < off(3, 0)


def test_groups_of_nm_that_straddle_grids_are_refused() -> None:
    dense, inputs = layer(6)
    with pytest.raises(ValueError, match="grids of 6 columns cut groups of 4: pass a multiple of it"):
        sparsegpt(dense, _factor(inputs), Budget(keep=2, group=4), grid=GridMaker(4, 6))
    from tiny_models import CONFIGS

    from methods.families import shape_of

    shape = shape_of({"model_type": "opt", **CONFIGS["opt"]})
    pruner = layerwise(SparseGPT(groupsize=6))
    assert pruner.refuse(shape, Target.parse("50%+4bit")) is None
    reason = pruner.refuse(shape, Target.parse("2:4+4bit"))
    assert reason == (
        "2:4+4bit needs grids that hold whole groups of 4 weights; sparsegpt.groupsize is 6, use a multiple of 4"
    )


def test_the_rule_gives_its_grid_and_only_where_bits_are_asked_for() -> None:
    dense, inputs = layer(7)
    given = problem(dense, inputs, Budget(remove=1000))
    plain = SparseGPT(grid="mse", groupsize=16).solve(given)
    assert plain.grid is None
    joint = SparseGPT(grid="mse", groupsize=16).solve(
        replace(given, weight=dense.clone(), bits=3, stored=torch.float16)
    )
    assert joint.grid is not None and joint.grid.scale.shape == (24, 6)
    assert torch.equal(joint.grid.scale.half().float(), joint.grid.scale)
    assert torch.equal(dequantise(quantise(joint.weight, joint.grid), joint.grid), joint.weight)
    literal = SparseGPT(reference=True).solve(
        replace(given, weight=dense.clone(), bits=3, stored=torch.float16)
    )
    assert literal.grid is not None and not torch.equal(literal.grid.scale.half().float(), literal.grid.scale)


def test_a_mask_from_elsewhere_is_quantised_by_the_update() -> None:
    dense, inputs = layer(8)
    given = replace(problem(dense, inputs, Budget(remove=1000)), bits=4)
    mask = torch.rand(dense.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    updated = SparseGPT().update(given, mask)
    assert updated.grid is not None and torch.equal(updated.mask, mask)
    assert torch.equal(dequantise(quantise(updated.weight, updated.grid), updated.grid), updated.weight)


def test_rules_that_do_not_quantise_say_so() -> None:
    from tiny_models import CONFIGS

    from methods.families import shape_of
    from methods.layerwise.magnitude import Magnitude
    from methods.layerwise.rule import keep

    shape = shape_of({"model_type": "opt", **CONFIGS["opt"]})
    target = Target.parse("50%+4bit")
    reason = layerwise(Magnitude()).refuse(shape, target)
    assert reason == "magnitude does not quantise; ask for 50% without +4bit"
    assert layerwise(SparseGPT()).refuse(shape, target) is None
    assert layerwise(Magnitude(), SparseGPT().update).refuse(shape, target) is None, "the update quantises"
    assert layerwise(SparseGPT(), keep).refuse(shape, target) is not None
    with pytest.raises(UserError, match="5 bits are not a grid; use 2, 3, 4 or 8"):
        Target.parse("50%+5bit")
