"""Where the library comes from, and that everything works, and says so, without it."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import cases
import pytest
import torch

from methods.kernels import _native, _structs
from methods.kernels.operators import native_status, obs_sweep

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Run code in a process of its own from `folder`, with the checkout's packages importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


DIGEST = """
import hashlib, torch, cases
from methods.kernels.operators import native_status, obs_sweep
digest = hashlib.sha256()
for case in (cases.SweepCase(19, 64, masked=True, bits=4), cases.SweepCase(19, 64, keep=2, group=4)):
    x = cases.inputs(case)
    done = obs_sweep(x.weight, x.factor, mask=x.mask, keep=case.keep, group=case.group, grid=x.grid)
    for tensor in (done.values, done.errors, done.mask, done.loss):
        digest.update(tensor.numpy().tobytes())
status = native_status()[0]
print(status.loaded, digest.hexdigest(), status.reason)
"""


def test_without_the_library_the_twin_gives_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    without = run_python(DIGEST, tmp_path, PRUNE_BENCH_NATIVE="0").split(maxsplit=2)
    assert without[0] == "False"
    assert "PRUNE_BENCH_NATIVE=0" in without[2]
    if _native.load("cpu").handle is None:
        pytest.skip(f"nothing to compare with: {_native.load('cpu').reason}")
    used = run_python(DIGEST, tmp_path).split(maxsplit=2)
    assert used[0] == "True"
    assert used[1] == without[1]


def test_an_absent_library_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNE_BENCH_NATIVE", raising=False)
    monkeypatch.setattr(_native, "_folders", lambda: [tmp_path])
    library = _native.load.__wrapped__("cpu")
    assert library.handle is None
    assert re.search(
        r"libprune_bench_cpu\.\w+ was not built: reinstall with a C\+\+ compiler", library.reason
    )
    with pytest.raises(RuntimeError, match="no cpu library"):
        library.obs_sweep(_native.ObsSweepParams())


def test_a_damaged_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / "libprune_bench_cpu.so"
    path.write_bytes(b"not a library")
    library = _native.open_library("cpu", path)
    assert library.handle is None
    assert str(path) in library.reason
    assert "cannot be loaded" in library.reason


def test_a_foreign_library_is_named() -> None:
    library = _native.open_library("cpu", Path("libc.so.6"))
    assert library.handle is None
    assert "cannot be loaded" in library.reason


def test_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _native.load("cpu")
    if loaded.handle is None:
        pytest.skip(f"needs the native CPU library: {loaded.reason}")
    built = _native.ABI
    monkeypatch.setattr(_native, "ABI", 999)
    library = _native.open_library("cpu", Path(loaded.path))
    assert library.handle is None
    assert f"has interface {built}, this package needs 999: reinstall" in library.reason


def test_status_names_both_libraries() -> None:
    cpu, cuda = native_status()
    assert (cpu.kind, cuda.kind) == ("cpu", "cuda")
    for status in (cpu, cuda):
        assert status.loaded == bool(status.path)
        assert status.loaded == (status.reason == "")
    if cpu.loaded:
        assert cpu.isa in {"portable", "avx2", "avx512"}


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cmake = (ROOT / "cuda" / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(rf"project\(prune_bench VERSION {re.escape(project)} ", cmake)
    loaded = _native.load("cpu")
    if loaded.handle is not None:
        assert loaded.version == project


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        ("obs_sweep_params", _structs.ObsSweepParams),
        ("bitmap", _structs.BitmapStruct),
        ("bitmap_matmul_params", _structs.BitmapMatmulParams),
        ("dense_matmul_params", _structs.DenseMatmulParams),
        ("bitmap_pack_params", _structs.BitmapPackParams),
        ("bitmap_unpack_params", _structs.BitmapUnpackParams),
    ],
)
def test_the_structs_match_the_header(name: str, mirror: type[ctypes.Structure]) -> None:
    header = (ROOT / "cuda" / "include" / "prune_bench.h").read_text(encoding="utf-8")
    body = header.split(f"typedef struct prune_bench_{name} {{")[1].split(f"}} prune_bench_{name};")[0]
    declared = re.findall(r"^\s*(?:const )?(\w+) ?(\*?) ?(\w+);", body, flags=re.MULTILINE)
    kinds = {
        "int32_t": ctypes.c_int32,
        "int64_t": ctypes.c_int64,
        "prune_bench_bitmap": _structs.BitmapStruct,
    }
    wanted = [(field, ctypes.c_void_p if star else kinds[kind]) for kind, star, field in declared]
    assert [(field, kind) for field, kind, *_ in mirror._fields_] == wanted
    abi = re.search(r"#define PRUNE_BENCH_ABI (\d+)", header)
    assert abi is not None
    assert int(abi[1]) == _native.ABI


def test_the_callers_flush_to_zero_does_not_leak_in() -> None:
    x = cases.inputs(cases.SweepCase(40, 16, masked=True))
    tiny = x.weight * 1e-40
    wanted = obs_sweep(tiny, x.factor, mask=x.mask)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        if _native.load("cpu").handle is None:
            pytest.skip("the torch twin follows torch's own setting")
        got = obs_sweep(tiny, x.factor, mask=x.mask)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got.values.view(torch.int32), wanted.values.view(torch.int32))
    assert bool(got.values.view(torch.int32).any())
