"""Products of packed weights against their twin, on every instruction set, dtype and thread count."""

from __future__ import annotations

import math

import cases
import pytest
import torch
from torch import Tensor

from methods.kernels import _native, products
from methods.kernels.formats import Bitmap, pack, unpack
from methods.kernels.products import bitmap_matmul, dense_matmul
from methods.kernels.twins import bitmap as twin

ISAS = ["portable", "avx2", "avx512", "avx512vbmi2"]


def by_library(
    x: Tensor, packed: Bitmap, bias: Tensor | None, *, isa: str = "best", threads: int = 1
) -> Tensor:
    library = _native.load("cpu")
    if library.handle is None:
        pytest.skip(f"needs the native CPU library: {library.reason}")
    if isa != "best" and not _native.cpu_has_isa(isa):
        pytest.skip(f"needs a processor with {isa}")
    return products.call_bitmap(library, x, cases.product_parts(packed), bias, isa=isa, threads=threads)


def assert_close(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within twice the error that plain float32 torch makes, beside a bound on any float32 sum's."""
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    plain = x.float() @ weight.float().T
    if bias is not None:
        exact, plain, size = exact + bias.double(), plain + bias.float(), size + bias.double().abs()
    allowed = 2 * (plain.double() - exact).abs().max().clamp(min=0) if exact.numel() else 0
    assert got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= allowed + 2e-7 * size).all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.PRODUCTS, ids=str)
def test_every_instruction_set_agrees_with_the_twin(case: cases.ProductCase, isa: str) -> None:
    weight, x, bias = cases.product_inputs(case)
    packed = pack(weight, dtype=case.dtype, keep=case.keep, group=case.group)
    got = by_library(x, packed, bias, isa=isa)
    assert_close(got, x, unpack(packed), bias)
    torch.testing.assert_close(
        got,
        twin.bitmap_matmul(x, *cases.product_parts(packed)[:4], bias, *cases.product_parts(packed)[4:]),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.PRODUCTS[::3], ids=str)
def test_the_dense_product_agrees_too(case: cases.ProductCase, isa: str) -> None:
    library = _native.load("cpu")
    if library.handle is None or not _native.cpu_has_isa(isa):
        pytest.skip(f"needs the native library and {isa}")
    weight, x, bias = cases.product_inputs(case)
    packed = pack(weight, dtype=case.dtype, keep=case.keep, group=case.group)
    held = twin.bitmap_unpack(
        packed.bitmap, packed.offsets, packed.values, packed.columns, packed.keep, packed.group
    )
    got = products.call_dense(library, x, held, packed.scales, bias, isa=isa, threads=2)
    assert_close(got, x, unpack(packed), bias)


@pytest.mark.parametrize("threads", [2, 3, 7, 0])
@pytest.mark.parametrize("tokens", [1, 4, 16, 70])
def test_thread_count_changes_no_bit(threads: int, tokens: int) -> None:
    weight, x, bias = cases.product_inputs(cases.ProductCase(700, 520, tokens))
    packed = pack(weight)
    for isa in filter(_native.cpu_has_isa, ISAS):
        one = by_library(x, packed, bias, isa=isa, threads=1)
        assert torch.equal(by_library(x, packed, bias, isa=isa, threads=threads), one)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_exact_on_small_integers(dtype: torch.dtype, isa: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-8, 9, (37, 333), generator=generator).float()
    weight[:, 0] = 127  # so that int8 scales are one
    for tokens in (1, 3, 16, 65):
        x = torch.randint(-4, 5, (tokens, 333), generator=generator).float()
        got = by_library(x, pack(weight, dtype=dtype), None, isa=isa)
        assert torch.equal(got, x @ weight.T)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 4, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stored_nan_and_infinity_come_through(dtype: torch.dtype, tokens: int, isa: str) -> None:
    weight, x, _ = cases.product_inputs(cases.ProductCase(8, 100, tokens, dtype))
    x = x.abs() + 0.1
    weight[1, 5] = math.nan
    weight[2, 99] = math.inf
    weight[3, 0] = -math.inf
    weight[4, 64] = -0.0
    got = by_library(x, pack(weight), None, isa=isa)
    assert bool(got[:, 1].isnan().all())
    assert bool((got[:, 2] == math.inf).all())
    assert bool((got[:, 3] == -math.inf).all())
    assert bool(got[:, [0, 4, 5, 6, 7]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_operator_takes_any_strides_and_gives_the_dtype_of_x(dtype: torch.dtype) -> None:
    weight, x, bias = cases.product_inputs(cases.ProductCase(30, 90, 6, torch.bfloat16))
    packed = pack(weight)
    x = x.to(dtype)
    wanted = bitmap_matmul(x.contiguous(), packed, bias)
    assert wanted.dtype == dtype
    assert torch.equal(bitmap_matmul(x, packed, bias), wanted)
    assert torch.equal(bitmap_matmul(x.T.contiguous().T, packed, bias), wanted)
    assert torch.equal(
        bitmap_matmul(torch.zeros(12, 180, dtype=dtype)[::2, ::2].copy_(x), packed, bias), wanted
    )
    repeated = x[:1].expand(6, 90)
    assert torch.equal(bitmap_matmul(repeated, packed, bias), bitmap_matmul(repeated.clone(), packed, bias))
    assert torch.equal(
        bitmap_matmul(x, packed, bias.to(torch.bfloat16)), bitmap_matmul(x, packed, bias.bfloat16().float())
    )
    torch.testing.assert_close(dense_matmul(x, weight.T.contiguous().T, bias=bias), wanted)


def test_parts_that_disagree_are_refused_and_read_within_bounds() -> None:
    weight, x, _ = cases.product_inputs(cases.ProductCase(20, 200, 3))
    packed = pack(weight)
    for row in (0, 10, 19):
        bitmap = packed.bitmap.clone()
        bitmap[row] = -1
        bad = Bitmap(bitmap, packed.offsets, packed.values, None, 200)
        for isa in filter(_native.cpu_has_isa, ISAS):
            for tokens in (1, 3, 18):
                with pytest.raises(
                    RuntimeError, match=r"bitmap_matmul of 20 x 200 .* do not belong together"
                ):
                    by_library(x[:1].expand(tokens, 200), bad, None, isa=isa)


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        ({"x": torch.zeros(2, 5)}, ValueError, r"x has shape \(2, 5\): pass \[tokens, 6\]"),
        ({"x": torch.zeros(6)}, ValueError, r"x has shape \(6,\)"),
        ({"x": torch.zeros(2, 6, dtype=torch.int64)}, TypeError, "x is torch.int64"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias is torch.float32 \(4,\): pass floating \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, ValueError, "bias is torch.int64"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias is on meta, the weight on cpu"),
    ],
)
def test_wrong_arguments_get_one_line(change: dict[str, Tensor], error: type[Exception], line: str) -> None:
    weight = torch.ones(3, 6)
    arguments = {"x": torch.zeros(2, 6), "bias": torch.zeros(3), **change}
    if "meta" in line:
        with pytest.raises(error, match=line):
            products._check_x(arguments["x"], 6, 3, arguments["bias"], torch.device("cpu"))
        return
    for call in (
        lambda: bitmap_matmul(arguments["x"], pack(weight), arguments["bias"]),
        lambda: dense_matmul(arguments["x"], weight, None, arguments["bias"]),
    ):
        with pytest.raises(error, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_opcheck() -> None:
    weight, x, bias = cases.product_inputs(cases.ProductCase(7, 70, 2))
    packed = pack(weight)
    args = (x, packed.bitmap, packed.offsets, packed.values, None, bias, 70, 0, 0)
    torch.library.opcheck(torch.ops.prune_bench.bitmap_matmul.default, args)
    torch.library.opcheck(torch.ops.prune_bench.dense_matmul.default, (x, weight, None, bias))


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.PRODUCTS, ids=str)
def test_the_gpu_agrees_with_the_twin(case: cases.ProductCase) -> None:
    weight, x, bias = cases.product_inputs(case)
    packed = pack(weight.cuda(), dtype=case.dtype, keep=case.keep, group=case.group)
    got = bitmap_matmul(x.cuda(), packed, bias.cuda())
    torch.testing.assert_close(got.cpu(), x @ unpack(packed).float().cpu().T + bias, rtol=1e-3, atol=1e-3)
