"""The GPU kernel's own body, run on host threads, against the torch twin."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cases
import pytest
import torch

from methods.kernels import _native, operators
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


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> _native.Library:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: none on PATH")
    library = tmp_path_factory.mktemp("emulated") / "libprune_bench_emulated.so"
    folders = [f"-I{CUDA / name}" for name in ("include", "common", "gpu", "emulate")]
    sources = [str(CUDA / "emulate" / "library.cpp"), str(CUDA / "common" / "check.cpp")]
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
