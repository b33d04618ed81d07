"""Packing keeps every bit, and what comes from outside is checked before it is used."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.kernels import _native, formats
from methods.kernels.formats import Bitmap, pack, unpack, validate
from methods.kernels.products import bitmap_matmul
from methods.kernels.twins import bitmap as twin

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
AS_BITS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
SHAPES = [(0, 8), (5, 0), (1, 1), (3, 7), (2, 64), (17, 63), (33, 65), (9, 576)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(AS_BITS[a.itemsize]), b.view(AS_BITS[b.itemsize]))


def sparse(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight.masked_fill(torch.rand(rows, columns, generator=generator) < 0.5, 0).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_bit_comes_back_and_the_twin_packs_alike(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = sparse(rows, columns, dtype)
    packed = pack(weight)
    validate(packed)
    assert packed.nonzeros == int(weight.count_nonzero())
    assert same_bits(unpack(packed), weight)
    bitmap, offsets = twin.bitmap_scan(weight, None)
    assert torch.equal(packed.bitmap, bitmap)
    assert packed.offsets is not None
    assert torch.equal(packed.offsets, offsets)
    assert same_bits(packed.values, twin.bitmap_gather(weight, bitmap, offsets, packed.nonzeros))
    assert same_bits(twin.bitmap_unpack(bitmap, offsets, packed.values, columns, 0, 0), weight)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_minus_zero_nan_and_infinity_are_stored(dtype: torch.dtype) -> None:
    row = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-7, 0.0])
    weight = torch.stack([row, row.flip(0), torch.zeros(7), torch.full((7,), -0.0), torch.ones(7)]).to(dtype)
    packed = pack(weight)
    assert packed.offsets is not None
    assert packed.offsets.diff().tolist() == [5, 5, 0, 7, 7]
    assert same_bits(unpack(packed), weight)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    weight = sparse(20, 70, dtype)
    for view in (
        weight.T.contiguous().T,
        torch.zeros(40, 210, dtype=dtype)[::2, ::3].copy_(weight),
        torch.zeros(20, 75, dtype=dtype)[:, 2:72].copy_(weight),
    ):
        assert same_bits(unpack(pack(view)), weight)
    assert same_bits(unpack(pack(weight[:1].expand(20, 70))), weight[:1].expand(20, 70).contiguous())


def test_int8_is_within_half_a_step_of_its_scale() -> None:
    weight = sparse(30, 100, torch.float32)
    weight[4] = 0
    packed = pack(weight, dtype=torch.int8)
    validate(packed)
    assert packed.scales is not None
    assert packed.nonzeros == int(weight.count_nonzero())
    error = (unpack(packed) - weight).abs()
    assert bool((error <= packed.scales[:, None] * 0.5001).all())
    largest = weight.abs().argmax(1)
    taken = unpack(packed).gather(1, largest[:, None])
    torch.testing.assert_close(taken, weight.gather(1, largest[:, None]))
    weight[7, 3] = math.inf
    with pytest.raises(ValueError, match="row 7 holds NaN or infinity, which int8 cannot"):
        pack(weight, dtype=torch.int8)


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4), (0, 4), (4, 4), (3, 5), (20, 40)])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=str)
def test_groups_need_no_offsets(keep: int, group: int, dtype: torch.dtype) -> None:
    mask = torch.rand(11, 120 // group, group, generator=torch.Generator().manual_seed(1))
    kept = mask.argsort(2).argsort(2) < keep
    weight = torch.where(kept, mask + 0.1, 0).flatten(1)
    weight[5] = 0  # zeros fill its groups
    packed = pack(weight, dtype=dtype, keep=keep, group=group)
    validate(packed)
    assert packed.offsets is None
    assert packed.nonzeros == 11 * 120 // group * keep
    if dtype != torch.int8:
        assert same_bits(unpack(packed), weight.to(dtype))
    first = twin.bits_of(packed.bitmap[5:6], 120).unflatten(1, (-1, group))
    assert bool((first == (torch.arange(group) < keep)).all())


def test_a_full_group_is_named() -> None:
    weight = torch.zeros(3, 8)
    weight[1, 4:7] = 1
    with pytest.raises(
        ValueError, match="row 1 has more than 2 non-zero weights in a group of 4: prune it to 2:4"
    ):
        pack(weight, keep=2, group=4)


def test_bytes_are_counted() -> None:
    packed = pack(sparse(10, 65, torch.bfloat16))
    assert packed.nbytes == 10 * 2 * 8 + 11 * 8 + 2 * packed.nonzeros


def spoiled(packed: Bitmap, **parts: object) -> Bitmap:
    values = {name: getattr(packed, name) for name in Bitmap.__dataclass_fields__}
    return Bitmap(**{**values, **parts})  # type: ignore[arg-type]


def by_twin(packed: Bitmap) -> int:
    args = (packed.bitmap, packed.offsets, packed.nonzeros, packed.columns, packed.keep, packed.group)
    return int(twin.bitmap_fault(*args))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), group=st.booleans())
def test_hostile_parts_are_found_and_read_within_bounds(seed: int, group: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def below(most: int) -> int:
        return int(torch.randint(most, (1,), generator=generator))

    rows, columns = 1 + below(9), 4 * (1 + below(40))
    weight = sparse(rows, columns, torch.float32, seed)
    good = (
        pack(weight)
        if not group
        else pack(
            weight.unflatten(1, (-1, 4)).index_fill(2, torch.tensor([1, 2]), 0).flatten(1), keep=2, group=4
        )
    )
    bitmap = good.bitmap.clone()
    offsets = None if good.offsets is None else good.offsets.clone()
    bitmap[below(rows), below(bitmap.shape[1])] ^= 1 << below(63)
    if offsets is not None and below(2):
        offsets[below(rows + 1)] = torch.tensor(below(2**60) - 2**59)
    bad = spoiled(good, bitmap=bitmap, offsets=offsets)
    args = (bad.bitmap, bad.offsets, bad.nonzeros, bad.columns, bad.keep, bad.group)
    assert int(torch.ops.prune_bench.bitmap_fault(*args)) == by_twin(bad) != -1
    with pytest.raises(ValueError, match=r"row \d+: its bitmap does not store|the offsets do not run"):
        validate(bad)
    with pytest.raises(RuntimeError, match="do not belong together"):
        unpack(bad)


@pytest.mark.parametrize("middle", [-1, 7, 1 << 40, -(1 << 62)])
def test_offsets_of_rows_without_columns_are_looked_at(middle: int) -> None:
    """Found by fuzzing: what validated was refused by the product."""
    good = pack(torch.zeros(4, 0))
    offsets = torch.tensor([0, 0, middle, 0, 0])
    bad = spoiled(good, offsets=offsets)
    with pytest.raises(ValueError, match="row 1: its bitmap does not store as many as its offsets"):
        validate(bad)
    assert by_twin(bad) == 1
    validate(good)
    assert torch.equal(bitmap_matmul(torch.ones(3, 0), good), torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("parts", "error", "line"),
    [
        (
            {"bitmap": torch.zeros(3, 1, dtype=torch.int64)},
            ValueError,
            r"pass int64 \[rows, 2\] for 70 columns",
        ),
        ({"bitmap": torch.zeros(3, 2)}, ValueError, "bitmap is torch.float32"),
        ({"values": torch.zeros(3, dtype=torch.float64)}, TypeError, "values are torch.float64"),
        ({"values": torch.zeros(3, 1)}, TypeError, r"values are torch.float32 \(3, 1\)"),
        ({"offsets": torch.zeros(3, dtype=torch.int64)}, ValueError, r"pass int64 \(4,\)"),
        ({"offsets": None}, ValueError, "offsets go with group = 0"),
        ({"keep": 2, "group": 4}, ValueError, "offsets go with group = 0"),
        ({"scales": torch.ones(3)}, ValueError, "scales go with int8"),
        ({"values": torch.zeros(9, dtype=torch.int8)}, ValueError, "scales go with int8"),
        ({"offsets": torch.tensor([0, 1, 2, 9])}, ValueError, "do not run from 0 to the 3 values stored"),
        (
            {"bitmap": torch.tensor([[1, 0], [1, 0], [0, 1 << 6]])},
            ValueError,
            "row 2: its bitmap does not store",
        ),
        ({"offsets": torch.tensor([0, 2, 2, 3])}, ValueError, "row 0: its bitmap does not store as many"),
        ({"columns": -1}, ValueError, "bitmap is"),
    ],
)
def test_parts_that_do_not_fit_get_one_line(
    parts: dict[str, object], error: type[Exception], line: str
) -> None:
    weight = torch.zeros(3, 70)
    weight[:, 0] = 1
    good = pack(weight)
    validate(good)
    with pytest.raises(error, match=line) as caught:
        validate(spoiled(good, **parts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "options", "error", "line"),
    [
        (torch.zeros(3), {}, ValueError, r"weight has shape \(3,\)"),
        (torch.zeros(3, 4, dtype=torch.int8), {}, TypeError, "weight is torch.int8"),
        (torch.zeros(3, 4), {"dtype": torch.float64}, TypeError, "dtype is torch.float64"),
        (torch.zeros(3, 4), {"keep": 2, "group": 3}, ValueError, "group=3 does not divide the 4 columns"),
        (torch.zeros(3, 4), {"keep": 5, "group": 4}, ValueError, "keep must lie between 0 and group"),
    ],
)
def test_what_cannot_be_packed_gets_one_line(
    weight: Tensor, options: dict[str, object], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        pack(weight, **options)  # type: ignore[arg-type]


def test_opcheck() -> None:
    weight = sparse(5, 70, torch.float32)
    packed = pack(weight)
    ops = torch.ops.prune_bench
    torch.library.opcheck(ops.bitmap_scan.default, (weight, None))
    torch.library.opcheck(ops.bitmap_scan.default, (weight, weight != 0))
    torch.library.opcheck(ops.bitmap_gather.default, (weight, packed.bitmap, packed.offsets, packed.nonzeros))
    torch.library.opcheck(ops.bitmap_unpack.default, (packed.bitmap, packed.offsets, packed.values, 70, 0, 0))
    torch.library.opcheck(
        ops.bitmap_fault.default, (packed.bitmap, packed.offsets, packed.nonzeros, 70, 0, 0)
    )


def test_the_twin_serves_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sparse(12, 130, torch.float16)
    wanted = pack(weight)
    monkeypatch.setattr(formats._native, "load", lambda kind: _native._absent(kind, "hidden"))
    packed = pack(weight)
    validate(packed)
    for name, part in packed.parts().items():
        assert torch.equal(part, getattr(wanted, name)), name
    assert same_bits(unpack(packed), weight)
    assert packed.nonzeros == int((weight.view(torch.int16) != 0).sum())
