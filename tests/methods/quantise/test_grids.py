"""Grids and the round trip to levels, held against loops over single weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from methods.quantise.grid import GridMaker, MatrixGrid, dequantise, quantise, requantise

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _slow_grid(weights: list[float], bits: int) -> tuple[float, float]:
    """Scale and zero point of one row, the latter not yet rounded, in Python's floats: the formula as published."""
    low, high = min(*weights, 0.0), max(*weights, 0.0)
    if low == high == 0.0:
        low, high = -1.0, 1.0
    scale = (high - low) / (2**bits - 1)
    return scale, -low / scale


def _slow_round(weight: float, scale: float, zero: int, bits: int) -> float:
    level = min(max(round(weight / scale) + zero, 0), 2**bits - 1)
    return scale * (level - zero)


def _weights(seed: int, rows: int, columns: int) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0  # nothing there
    if rows > 3:
        weight[1].abs_()  # on one side of zero
        weight[2].abs_().neg_()
        weight[3] *= 1e-6
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("columns", "groupsize"), [(12, 0), (12, 5), (12, 40), (1, 0)])
def test_grids_and_levels_are_those_of_the_loops(bits: int, columns: int, groupsize: int) -> None:
    weight = _weights(bits, 7, columns)
    grid = GridMaker(bits, groupsize).whole(weight)
    size = groupsize or columns
    rounded = dequantise(quantise(weight, grid), grid)
    assert grid.scale.shape == (7, math.ceil(columns / size))
    for row in range(7):
        for first in range(0, columns, size):
            part = weight[row, first : first + size].tolist()
            scale, zero = _slow_grid(part, bits)
            assert float(grid.scale[row, first // size]) == pytest.approx(scale, rel=1e-6)
            found = int(grid.zero[row, first // size])
            assert abs(found - zero) <= 0.5 + 1e-4  # a tie may fall either way in float32
            for column, value in enumerate(part, first):
                slow = _slow_round(value, scale, found, bits)
                other = abs(value / scale - math.floor(value / scale) - 0.5) < 1e-4
                assert float(rounded[row, column]) == pytest.approx(
                    slow, rel=1e-5, abs=scale if other else 1e-9
                )


def test_zero_lies_on_every_grid() -> None:
    for bits in (2, 3, 4, 8):
        for search in ("minmax", "mse"):
            grid = GridMaker(bits, 4, search).whole(_weights(3, 9, 14))
            zeros = torch.zeros(9, 14)
            assert torch.equal(dequantise(quantise(zeros, grid), grid), zeros)
            assert torch.equal(grid.zero, grid.zero.round())
            assert int(grid.zero.min()) >= 0 and int(grid.zero.max()) < 2**bits


def test_an_empty_row_and_no_rows() -> None:
    grid = GridMaker(4).whole(torch.zeros(2, 5))
    assert torch.equal(dequantise(quantise(torch.zeros(2, 5), grid), grid), torch.zeros(2, 5))
    assert GridMaker(4).whole(torch.zeros(0, 5)).scale.shape == (0, 1)


def test_weights_at_the_ends_of_float32_have_a_grid() -> None:
    weight = torch.tensor([[1e-38, 0.0], [3e38, 0.0], [1e-45, -1e-45]])
    grid = GridMaker(3).whole(weight)
    assert bool(torch.isfinite(grid.scale).all()) and bool((grid.scale > 0).all())
    assert bool(torch.isfinite(dequantise(quantise(weight, grid), grid)).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groupsize", [0, 16])
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_searched_grids_round_no_worse_than_spanning_ones(
    bits: int, groupsize: int, dtype: torch.dtype
) -> None:
    weight = _weights(4, 32, 48)
    weight[5, 7] = 12.0  # an outlier that a narrower range gains by cutting off
    errors = {}
    for search in ("minmax", "mse"):
        grid = GridMaker(bits, groupsize, search, dtype).whole(weight)
        errors[search] = (dequantise(quantise(weight, grid), grid) - weight).square().sum(dim=1)
    assert bool((errors["mse"] <= errors["minmax"]).all())
    if bits < 8:
        assert float(errors["mse"].sum()) < float(errors["minmax"].sum())


def test_the_search_goes_by_rows_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _weights(5, 11, 24)
    whole = GridMaker(3, 0, "mse").whole(weight)
    monkeypatch.setattr("methods.quantise.grid._PIECE", 50)
    cut = GridMaker(3, 0, "mse").whole(weight)
    assert torch.equal(whole.scale, cut.scale) and torch.equal(whole.zero, cut.zero)


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_are_held_by_the_stored_dtype_and_span_the_range(dtype: torch.dtype, bits: int) -> None:
    weight = _weights(6, 40, 30)
    grid = GridMaker(bits, 7, dtype=dtype).whole(weight)
    exact = GridMaker(bits, 7).whole(weight)
    assert torch.equal(grid.scale.to(dtype).float(), grid.scale)
    assert bool((grid.scale >= exact.scale).all()), "a smaller scale would cut the ends off"
    # one unit in the last place, or the least number that float16 has
    step = max(torch.finfo(dtype).eps * float(exact.scale.max()), 2.0**-24)
    assert float((grid.scale - exact.scale).max()) <= step


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_stored_weights_go_back_to_levels_that_give_the_same_bits(dtype: torch.dtype, bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    grid = GridMaker(bits, 10, dtype=dtype).whole(_weights(7, 50, 40))
    levels = torch.randint(0, 2**bits, (50, 40), generator=generator)
    stored = dequantise(levels, grid).to(dtype)
    found = requantise(stored, grid)
    assert found is not None
    assert torch.equal(dequantise(found, grid).to(dtype), stored)
    assert dtype == torch.bfloat16 or torch.equal(found, levels.int())
    # in the stored dtype alone, as a reader of the packed form multiplies
    scale, zero = grid.spread(40)
    assert torch.equal((found.to(dtype) - zero.to(dtype)) * scale.to(dtype), stored)


def test_weights_off_the_grid_have_no_levels() -> None:
    weight = _weights(8, 6, 20)
    grid = GridMaker(4).whole(weight)
    assert requantise(weight, grid) is None


def test_an_unknown_search_is_named() -> None:
    with pytest.raises(ValueError, match="search 'best' is unknown: pass minmax or mse"):
        GridMaker(4, search="best")


def test_strided_weights_give_the_same_grids() -> None:
    weight = _weights(9, 16, 24)
    wide = torch.full((24, 40), math.nan)
    wide[:, 3:35:2] = weight.T
    view = wide[:, 3:35:2].T
    for search in ("minmax", "mse"):
        plain, strided = (GridMaker(3, 5, search).whole(source) for source in (weight, view))
        assert torch.equal(plain.scale, strided.scale) and torch.equal(plain.zero, strided.zero)
        assert torch.equal(quantise(weight, plain), quantise(view, strided))


def test_a_grid_knows_the_group_of_a_column() -> None:
    grid = MatrixGrid(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 2.0]]), 4, 5)
    assert [float(grid.at(column).scale) for column in (0, 4, 5, 9, 10, 11)] == [1, 1, 2, 2, 3, 3]
    assert grid.at(11).levels == 16
    scale, zero = grid.spread(12)
    assert scale[0].tolist() == [1.0] * 5 + [2.0] * 5 + [3.0] * 2
    assert zero[0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 2
