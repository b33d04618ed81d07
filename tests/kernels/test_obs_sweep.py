"""The sweep against its torch twin: the same bits on every instruction set, thread count and input."""

from __future__ import annotations

import math
from collections.abc import Callable

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.kernels import _native, operators
from methods.kernels.operators import Grid, Sweep, obs_sweep
from methods.kernels.twins import obs_sweep as twin

ISAS = ["portable", "avx2", "avx512"]
Run = Callable[..., Sweep]


def by_twin(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    keep: int,
    group: int,
    grid: Grid | None,
    divisor: Tensor | None = None,
) -> Sweep:
    scale, zero, levels = (None, None, 0) if grid is None else (grid.scale, grid.zero, grid.levels)
    return Sweep(*twin.obs_sweep(weight, factor, mask, keep, group, scale, zero, levels, divisor))


def by_library(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    keep: int,
    group: int,
    grid: Grid | None,
    divisor: Tensor | None = None,
    *,
    isa: str = "best",
    threads: int = 1,
) -> Sweep:
    library = _native.load("cpu")
    if library.handle is None:
        pytest.skip(f"needs the native CPU library: {library.reason}")
    if isa != "best" and not _native.cpu_has_isa(isa):
        pytest.skip(f"needs a processor with {isa}")
    scale, zero, levels = (None, None, 0) if grid is None else (grid.scale, grid.zero, grid.levels)
    tensors, optional, sizes = (weight, factor), (mask, scale, zero, divisor), (keep, group, levels)
    return Sweep(*operators._call(library, tensors, optional, sizes, isa=isa, threads=threads))


def assert_same(got: Sweep, wanted: Sweep) -> None:
    """Equal in every number; a NaN equals a NaN."""
    for name in ("values", "errors", "mask", "loss"):
        a, b = getattr(got, name), getattr(wanted, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        same = (a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b
        assert bool(same.all()), f"{name} differs in {int((~same).sum())} of {same.numel()} entries"


@pytest.mark.parametrize("case", cases.SWEEPS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_bits_of_the_twin(case: cases.SweepCase, isa: str) -> None:
    x = cases.inputs(case)
    args = (x.weight, x.factor, x.mask, case.keep, case.group, x.grid, x.divisor)
    assert_same(by_library(*args, isa=isa), by_twin(*args))


@pytest.mark.parametrize("case", cases.SWEEPS, ids=str)
def test_the_operator_gives_the_bits_of_the_twin(case: cases.SweepCase) -> None:
    x = cases.inputs(case, seed=1)
    chosen = {"mask": x.mask, "keep": case.keep, "group": case.group}
    got = obs_sweep(x.weight, x.factor, **chosen, grid=x.grid, divisor=x.divisor)  # type: ignore[arg-type]
    assert_same(got, by_twin(x.weight, x.factor, x.mask, case.keep, case.group, x.grid, x.divisor))


@pytest.mark.parametrize("threads", [2, 3, 5, 16, 0])
@pytest.mark.parametrize("rows", [1, 15, 100, 1000])
def test_thread_count_changes_no_bit(threads: int, rows: int) -> None:
    case = cases.SweepCase(rows, 48, keep=2, group=4, bits=4)
    x = cases.inputs(case)
    args = (x.weight, x.factor, x.mask, case.keep, case.group, x.grid)
    assert_same(by_library(*args, threads=threads), by_library(*args, threads=1))


@pytest.mark.parametrize("columns", [*range(1, 34), 47, 63, 65, 95, 113, 127, 128])
def test_every_block_width(columns: int) -> None:
    x = cases.inputs(cases.SweepCase(18, columns, masked=True), seed=columns)
    for isa in filter(_native.cpu_has_isa, ISAS):
        assert_same(
            by_library(x.weight, x.factor, x.mask, 0, 0, None, isa=isa),
            by_twin(x.weight, x.factor, x.mask, 0, 0, None),
        )
    whole = by_twin(x.weight, x.factor, None, columns // 2, columns, None)
    assert_same(obs_sweep(x.weight, x.factor, keep=columns // 2, group=columns), whole)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    groups=st.integers(1, 8),
    pattern=st.integers(1, 16).flatmap(lambda group: st.tuples(st.integers(0, group), st.just(group))),
    bits=st.sampled_from([0, 2, 3, 4, 8]),
    seed=st.integers(0, 2**31),
)
def test_any_pattern(rows: int, groups: int, pattern: tuple[int, int], bits: int, seed: int) -> None:
    keep, group = pattern
    case = cases.SweepCase(rows, group * groups, keep=keep, group=group, bits=bits)
    x = cases.inputs(case, seed)
    got = obs_sweep(x.weight, x.factor, keep=keep, group=group, grid=x.grid)
    assert_same(got, by_twin(x.weight, x.factor, None, keep, group, x.grid))
    assert bool((got.mask.unflatten(1, (groups, group)).sum(2) == group - keep).all())


def powers_of_two(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs on which every operation of a sweep is exact, so that float64 must agree to the last bit."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (rows, columns), generator=generator) * 2 - 1
    weight = sign * torch.exp2(torch.randint(-2, 3, (rows, columns), generator=generator).float())
    # One entry beside the diagonal in each row keeps the chain of products short enough for 24 bits.
    factor = torch.diag(torch.exp2(torch.randint(-1, 2, (columns,), generator=generator).float()))
    for j in range(0, columns - 1, 2):
        factor[j, j + 1] = 0.5
    mask = torch.rand(rows, columns, generator=generator) < 0.5
    return weight, factor, mask


@pytest.mark.parametrize("isa", ISAS)
def test_exact_on_powers_of_two(isa: str) -> None:
    weight, factor, mask = powers_of_two(33, 64, seed=3)
    got = by_library(weight, factor, mask, 0, 0, None, isa=isa)
    current, loss = weight.double(), torch.zeros(33, dtype=torch.float64)
    errors = torch.zeros_like(current)
    for j in range(64):
        errors[:, j] = torch.where(mask[:, j], current[:, j], 0) / factor[j, j].double()
        loss += errors[:, j] ** 2 / 2
        current[:, j + 1 :] -= errors[:, j : j + 1] * factor[j, j + 1 :].double()
    assert torch.equal(got.values.double(), torch.where(mask, 0, current))
    assert torch.equal(got.errors.double(), errors)
    assert torch.equal(got.loss.double(), loss)


def test_the_error_stays_within_twice_that_of_plain_float32() -> None:
    x = cases.inputs(cases.SweepCase(64, 128, masked=True), seed=7)
    assert x.mask is not None
    exact = x.weight.double()
    factor = x.factor.double()
    for j in range(128):
        error = torch.where(x.mask[:, j], exact[:, j], 0) / factor[j, j]
        exact[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    exact = torch.where(x.mask, 0, exact)
    plain = by_twin(x.weight, x.factor, x.mask, 0, 0, None).values
    bound = 2 * (plain.double() - exact).abs().max()
    got = obs_sweep(x.weight, x.factor, mask=x.mask).values
    assert (got.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("isa", [*ISAS, "twin"])
def test_the_lowest_index_goes_first_among_equals(isa: str) -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, -1.0, 1.0]])
    wanted = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    args = (weight, torch.eye(4), None, 2, 4, None)
    got = by_twin(*args) if isa == "twin" else by_library(*args, isa=isa)
    assert torch.equal(got.mask, wanted)
    assert torch.equal(got.values, torch.where(wanted, 0, weight))


@pytest.mark.parametrize("isa", [*ISAS, "twin"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_kept_and_stays_in_its_row(isa: str, bad: float) -> None:
    x = cases.inputs(cases.SweepCase(20, 32), seed=5)
    clean = by_twin(x.weight, x.factor, None, 2, 4, None)
    weight = x.weight.clone()
    weight[7, 4] = bad
    args = (weight, x.factor, None, 2, 4, None)
    got = by_twin(*args) if isa == "twin" else by_library(*args, isa=isa)
    assert not got.mask[7, 4], "a NaN or infinity ranks above every number"
    assert not got.values[7, 4].isfinite()
    others = torch.arange(20) != 7
    assert torch.equal(got.values[others], clean.values[others])
    assert torch.equal(got.loss[others], clean.loss[others])
    assert_same(got, by_twin(*args))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("choice", ["mask", "2:4", "grid"])
def test_hostile_values(isa: str, choice: str) -> None:
    odd = [
        0.0,
        -0.0,
        1e-45,
        1e-30,
        1e30,
        -3e38,
        math.inf,
        -math.inf,
        math.nan,
        1.0,
        1.0,
        -1.0,
        0.5,
        2.5,
        8388609.0,
    ]
    generator = torch.Generator().manual_seed(11)
    weight = torch.tensor(odd)[torch.randint(0, len(odd), (70, 32), generator=generator)]
    x = cases.inputs(cases.SweepCase(70, 32, masked=True, bits=3), seed=2)
    mask, keep, group = (None, 2, 4) if choice == "2:4" else (x.mask, 0, 0)
    args = (weight, x.factor, mask, keep, group, x.grid if choice == "grid" else None)
    assert_same(by_library(*args, isa=isa), by_twin(*args))


@pytest.mark.parametrize("isa", [*ISAS, "twin"])
def test_halves_round_to_even(isa: str) -> None:
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 3.5, 4.5, 100.0]])
    grid = Grid(torch.ones(1), torch.full((1,), 2.0), 8)
    args = (weight, torch.eye(8), None, 0, 0, grid)
    got = by_twin(*args) if isa == "twin" else by_library(*args, isa=isa)
    assert got.values.tolist() == [[0.0, 2.0, 2.0, 0.0, -2.0, 4.0, 4.0, 5.0]]


def test_strides_of_weight_factor_and_mask() -> None:
    x = cases.inputs(cases.SweepCase(21, 24, masked=True), seed=4)
    assert x.mask is not None
    wanted = obs_sweep(x.weight.contiguous(), x.factor.contiguous(), mask=x.mask.contiguous())
    transposed = obs_sweep(x.weight.T.contiguous().T, x.factor.T.contiguous().T, mask=x.mask.T.contiguous().T)
    assert_same(transposed, wanted)
    wide = torch.empty(42, 72)[::2, ::3]
    wide.copy_(x.weight)
    assert_same(obs_sweep(wide, x.factor, mask=x.mask), wanted)
    repeated = x.weight[:1].expand(21, 24)
    assert_same(
        obs_sweep(repeated, x.factor, mask=x.mask), obs_sweep(repeated.clone(), x.factor, mask=x.mask)
    )


def test_nothing_below_the_diagonal_is_read_and_nothing_is_written() -> None:
    x = cases.inputs(cases.SweepCase(10, 16, masked=True))
    wanted = obs_sweep(x.weight, x.factor.triu(), mask=x.mask)
    weight, factor = x.weight.clone(), x.factor.triu() + torch.full((16, 16), math.nan).tril(-1)
    assert_same(obs_sweep(weight, factor, mask=x.mask), wanted)
    assert torch.equal(weight, x.weight)


@pytest.mark.parametrize(("rows", "columns"), [(0, 16), (5, 0), (0, 0)])
def test_empty(rows: int, columns: int) -> None:
    got = obs_sweep(torch.zeros(rows, columns), torch.eye(columns))
    assert got.values.shape == got.errors.shape == got.mask.shape == (rows, columns)
    assert torch.equal(got.loss, torch.zeros(rows))


def test_nothing_to_do_changes_nothing() -> None:
    x = cases.inputs(cases.SweepCase(12, 40))
    got = obs_sweep(x.weight, x.factor)
    assert torch.equal(got.values, x.weight)
    assert not got.mask.any()
    assert not got.errors.any()


@pytest.mark.parametrize("isa", [*ISAS, "twin"])
def test_a_divisor_ranks_and_compensates_nothing(isa: str) -> None:
    x = cases.inputs(cases.SweepCase(20, 32), seed=6)
    own = (x.weight, x.factor, None, 2, 4, None, x.factor.diagonal().clone())
    assert_same(by_twin(*own) if isa == "twin" else by_library(*own, isa=isa), by_twin(*own[:6]))
    # weight 1 of every group counts for nothing, weight 2 above all
    divisor = torch.ones(32)
    divisor[1::4], divisor[2::4] = 1e15, 1e-15
    args = (x.weight, x.factor, None, 3, 4, None, divisor)
    got = by_twin(*args) if isa == "twin" else by_library(*args, isa=isa)
    assert bool(got.mask[:, 1::4].all())
    fixed = torch.zeros(20, 32, dtype=torch.bool)
    fixed[:, 1::4] = True
    assert_same(got, by_twin(x.weight, x.factor, fixed, 0, 0, None))


def test_identity_factor_is_magnitude_pruning() -> None:
    weight = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    got = obs_sweep(weight, torch.eye(64), keep=2, group=4)
    smallest = weight.abs().unflatten(1, (16, 4)).argsort(dim=2)[..., :2]
    wanted = torch.zeros(30, 16, 4, dtype=torch.bool).scatter_(2, smallest, True).flatten(1)
    assert torch.equal(got.mask, wanted)
    assert torch.equal(got.values, weight.masked_fill(wanted, 0))


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (
            {"weight": torch.zeros(4, 8, dtype=torch.float16)},
            TypeError,
            "weight is torch.float16: pass torch.float32",
        ),
        (
            {"factor": torch.eye(8, dtype=torch.float64)},
            TypeError,
            "factor is torch.float64: pass torch.float32",
        ),
        ({"mask": torch.zeros(4, 8)}, TypeError, "mask is torch.float32: pass torch.bool"),
        ({"weight": torch.zeros(8)}, ValueError, r"weight has shape \(8,\): pass \[rows, columns\]"),
        ({"factor": torch.eye(7)}, ValueError, r"factor has shape \(7, 7\): pass \(8, 8\)"),
        (
            {"mask": torch.zeros(4, 7, dtype=torch.bool)},
            ValueError,
            r"mask has shape \(4, 7\): pass \(4, 8\)",
        ),
        ({"keep": 2, "group": 3}, ValueError, "group=3 does not divide the 8 columns"),
        ({"keep": 5, "group": 4}, ValueError, "keep=5 of group=4: keep must lie between 0 and group"),
        ({"keep": 1}, ValueError, "keep=1 of group=0"),
        (
            {"mask": torch.zeros(4, 8, dtype=torch.bool), "keep": 2, "group": 4},
            ValueError,
            "exclude each other",
        ),
        ({"grid": Grid(torch.ones(4), torch.ones(4), 1)}, ValueError, "grid.levels is 1: pass 2 to 65536"),
        (
            {"grid": Grid(torch.ones(3), torch.ones(4), 4)},
            ValueError,
            r"grid.scale has shape \(3,\): pass \(4,\)",
        ),
        ({"factor": torch.eye(8, device="meta")}, ValueError, "factor is on meta, weight on cpu"),
        (
            {"divisor": torch.ones(7), "keep": 2, "group": 4},
            ValueError,
            r"divisor has shape \(7,\): pass \(8,\)",
        ),
        ({"divisor": torch.ones(8)}, ValueError, "divisor without group ranks nothing"),
    ],
)
def test_wrong_arguments_get_one_line(change: dict[str, object], error: type[Exception], line: str) -> None:
    arguments: dict[str, object] = {"weight": torch.zeros(4, 8), "factor": torch.eye(8), **change}
    weight, factor = arguments.pop("weight"), arguments.pop("factor")
    with pytest.raises(error, match=line) as caught:
        obs_sweep(weight, factor, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "case", [cases.SWEEPS[4], cases.SweepCase(8, 16, keep=2, group=4, bits=4, divided=True)], ids=str
)
def test_opcheck(case: cases.SweepCase) -> None:
    x = cases.inputs(case)
    scale, zero, levels = (None, None, 0) if x.grid is None else (x.grid.scale, x.grid.zero, x.grid.levels)
    args = (x.weight, x.factor, x.mask, case.keep, case.group, scale, zero, levels, x.divisor)
    torch.library.opcheck(torch.ops.prune_bench.obs_sweep.default, args)


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.SWEEPS, ids=str)
def test_the_gpu_gives_the_bits_of_the_twin(case: cases.SweepCase) -> None:
    x = cases.inputs(case)
    grid = None if x.grid is None else Grid(x.grid.scale.cuda(), x.grid.zero.cuda(), x.grid.levels)
    mask = None if x.mask is None else x.mask.cuda()
    divisor = None if x.divisor is None else x.divisor.cuda()
    chosen = {"mask": mask, "keep": case.keep, "group": case.group}
    got = obs_sweep(x.weight.cuda(), x.factor.cuda(), **chosen, grid=grid, divisor=divisor)  # type: ignore[arg-type]
    on_host = Sweep(got.values.cpu(), got.errors.cpu(), got.mask.cpu(), got.loss.cpu())
    assert_same(on_host, by_twin(x.weight, x.factor, x.mask, case.keep, case.group, x.grid, x.divisor))
