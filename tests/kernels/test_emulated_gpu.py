"""The GPU kernels' own bodies, run on host threads, against the torch twins."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import cases
import pytest
import torch

from methods.kernels import _native, operators, products
from methods.kernels.formats import Bitmap, pack, unpack
from methods.kernels.twins import obs_sweep as twin

CUDA = Path(__file__).resolve().parents[2] / "cuda"

CASES = [
    cases.SweepCase(1, 1, masked=True),
    cases.SweepCase(5, 33, masked=True),
    cases.SweepCase(3, 128, masked=True),
    cases.SweepCase(6, 64, keep=2, group=4),
    cases.SweepCase(3, 96, keep=4, group=8, bits=4),
    cases.SweepCase(2, 68, keep=9, group=17),
    cases.SweepCase(2, 128, keep=50, group=128),
    cases.SweepCase(3, 40, masked=True, bits=3),
    cases.SweepCase(3, 72, keep=3, group=8, divided=True),
    cases.SweepCase(0, 8),
    cases.SweepCase(4, 0),
]


PRODUCTS = [
    cases.ProductCase(1, 1, 1),
    cases.ProductCase(5, 63, 1),
    cases.ProductCase(3, 64, 4, torch.bfloat16),
    cases.ProductCase(4, 65, 3, torch.float16),
    cases.ProductCase(3, 2117, 2, torch.int8),  # more than one chunk of 32 words
    cases.ProductCase(2, 200, 16),
    cases.ProductCase(3, 130, 19, torch.bfloat16),  # more tokens than there are sums
    cases.ProductCase(3, 96, 5, torch.float16, keep=2, group=4),
    cases.ProductCase(3, 136, 1, torch.int8, keep=3, group=8),
    cases.ProductCase(0, 8, 2),
    cases.ProductCase(3, 0, 2),
    cases.ProductCase(3, 8, 0),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> _native.Library:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: none on PATH")
    library = tmp_path_factory.mktemp("emulated") / "libprune_bench_emulated.so"
    folders = [f"-I{CUDA / name}" for name in ("include", "common", "gpu", "emulate")]
    sources = [str(CUDA / "emulate" / "library.cpp"), *map(str, sorted((CUDA / "common").glob("*.cpp")))]
    flags = [
        "-std=c++20",
        "-O1",
        "-shared",
        "-fPIC",
        "-pthread",
        "-ffp-contract=off",
        '-DPRUNE_BENCH_VERSION="test"',
    ]
    subprocess.run([compiler, *flags, *folders, *sources, "-o", str(library)], check=True, timeout=240)
    opened = _native.open_library("cuda", library)
    assert opened.handle is not None, opened.reason
    return opened


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gpu_kernel_gives_the_bits_of_the_twin(emulated: _native.Library, case: cases.SweepCase) -> None:
    x = cases.inputs(case)
    scale, zero, levels = (None, None, 0) if x.grid is None else (x.grid.scale, x.grid.zero, x.grid.levels)
    tensors, optional, sizes = (
        (x.weight, x.factor),
        (x.mask, scale, zero, x.divisor),
        (case.keep, case.group, levels),
    )
    got = operators._call(emulated, tensors, optional, sizes, isa="best", threads=0)
    wanted = twin.obs_sweep(x.weight, x.factor, x.mask, case.keep, case.group, scale, zero, levels, x.divisor)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


def test_a_wider_block_than_the_gpu_takes_is_refused(emulated: _native.Library) -> None:
    x = cases.inputs(cases.SweepCase(2, 129))
    with pytest.raises(RuntimeError, match="2 x 129: the CUDA kernel takes at most 128 columns"):
        operators._call(emulated, (x.weight, x.factor), (None,) * 4, (0, 0, 0), isa="best", threads=0)


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_the_product_agrees_with_float64(emulated: _native.Library, case: cases.ProductCase) -> None:
    weight, x, bias = cases.product_inputs(case)
    packed = pack(weight, dtype=case.dtype, keep=case.keep, group=case.group)
    got = products.call_bitmap(emulated, x, cases.product_parts(packed), bias, isa="best", threads=0)
    exact = x.double() @ unpack(packed).double().T + bias.double()
    size = x.double().abs() @ unpack(packed).double().abs().T + bias.double().abs()
    assert got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= 4e-7 * size + 1e-30).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stored_nan_and_infinity_come_through(emulated: _native.Library, dtype: torch.dtype) -> None:
    weight, x, _ = cases.product_inputs(cases.ProductCase(5, 70, 2, dtype))
    weight[1, 5], weight[2, 69], weight[3, 0], weight[4, 64] = math.nan, math.inf, -math.inf, -0.0
    got = products.call_bitmap(
        emulated, x.abs() + 0.1, cases.product_parts(pack(weight)), None, isa="best", threads=0
    )
    assert bool(got[:, 1].isnan().all())
    assert got[:, 2:4].tolist() == [[math.inf, -math.inf]] * 2
    assert bool(got[:, [0, 4]].isfinite().all())


def test_subnormal_and_extreme_halves_are_read_right(emulated: _native.Library) -> None:
    bits = torch.tensor([[1, 0x03FF, 0x0400, 0x7BFF, -0x8000 + 0x3C00]], dtype=torch.int16)
    weight = bits.view(torch.float16)
    got = products.call_bitmap(
        emulated, torch.eye(5), cases.product_parts(pack(weight)), None, isa="best", threads=0
    )
    assert torch.equal(got[:, 0], weight[0].float())


def test_rows_whose_parts_disagree_are_nan_and_the_others_right(emulated: _native.Library) -> None:
    weight, x, bias = cases.product_inputs(cases.ProductCase(6, 200, 3))
    packed = pack(weight)
    wanted = x @ weight.T + bias
    assert packed.offsets is not None
    full, beyond = packed.bitmap.clone(), packed.bitmap.clone()
    full[2] = -1
    beyond[5, 3] |= 1 << 62  # of 200 columns
    far, back = packed.offsets.clone(), packed.offsets.clone()
    far[4] = 1 << 40
    back[3] = -7
    for bitmap, offsets, bad in (
        (full, packed.offsets, {2}),
        (beyond, packed.offsets, {5}),
        (packed.bitmap, far, {3, 4}),
        (packed.bitmap, back, {2, 3}),
    ):
        parts = cases.product_parts(Bitmap(bitmap, offsets, packed.values, None, 200))
        got = products.call_bitmap(emulated, x, parts, bias, isa="best", threads=0)
        assert {row for row in range(6) if bool(got[:, row].isnan().all())} == bad
        good = sorted(set(range(6)) - bad)
        torch.testing.assert_close(got[:, good], wanted[:, good])
