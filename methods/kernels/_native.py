"""Finds, loads and calls the native libraries: the one place that knows ctypes.

``PRUNE_BENCH_NATIVE=0`` leaves them alone, so that the torch twins serve. A library lies beside this file (in
a wheel and in a checkout built in place) or in the installed copy of this package (an editable install).
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ABI", "ISA_IDS", "Library", "ObsSweepParams", "cpu_has_isa", "load"]

ABI = 2
ISA_IDS = {"best": 0, "portable": 1, "avx2": 2, "avx512": 3}


class ObsSweepParams(ctypes.Structure):
    """``prune_bench_obs_sweep_params`` of cuda/include/prune_bench.h, field for field."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("keep", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("levels", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("weight_row_stride", ctypes.c_int64),
        ("weight_column_stride", ctypes.c_int64),
        ("factor", ctypes.c_void_p),
        ("factor_row_stride", ctypes.c_int64),
        ("factor_column_stride", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_row_stride", ctypes.c_int64),
        ("mask_column_stride", ctypes.c_int64),
        ("divisor", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
        ("removed", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Library:
    """What came of looking for one library.

    ``kind`` is "cpu" or "cuda". Where the library is not used, ``path`` and ``version`` are empty, ``handle``
    is None and ``reason`` says why. ``isa`` is the instruction set chosen on this processor (CPU only).
    """

    kind: str
    path: str
    version: str
    isa: str
    reason: str
    handle: ctypes.CDLL | None

    def obs_sweep(self, params: ObsSweepParams, stream: int | None = None) -> None:
        """Run the sweep; raises RuntimeError with the library's own line where it refuses."""
        handle = self.handle
        if handle is None:
            raise RuntimeError(f"no {self.kind} library: {self.reason}")
        if self.kind == "cuda":
            status = handle.prune_bench_cuda_obs_sweep(ctypes.byref(params), ctypes.c_void_p(stream))
        else:
            status = handle.prune_bench_cpu_obs_sweep(ctypes.byref(params))
        if status != 0:
            line = handle.prune_bench_message(status).decode()
            raise RuntimeError(
                f"native obs_sweep on {params.rows} x {params.columns}: {line} (status {status})"
            )


@cache
def load(kind: str) -> Library:
    """The library of ``kind`` ("cpu" or "cuda"), looked for once a process."""
    if os.environ.get("PRUNE_BENCH_NATIVE", "1") == "0":
        return _absent(kind, "PRUNE_BENCH_NATIVE=0 asks for the torch twins")
    name = _file_name(kind)
    found = [path for folder in _folders() if (path := folder / name).is_file()]
    if not found:
        remedy = (
            "reinstall with a C++ compiler" if kind == "cpu" else "reinstall with PRUNE_BENCH_CUDA=1 and nvcc"
        )
        return _absent(kind, f"{name} was not built: {remedy}")
    return open_library(kind, found[0])


def open_library(kind: str, path: Path) -> Library:
    """Load the library at ``path``, refusing one of another ABI."""
    try:
        handle = ctypes.CDLL(str(path))
        handle.prune_bench_version.restype = ctypes.c_char_p
        handle.prune_bench_message.restype = ctypes.c_char_p
        handle.prune_bench_message.argtypes = [ctypes.c_int32]
        abi = handle.prune_bench_abi()
        if abi != ABI:
            return _absent(kind, f"{path} has interface {abi}, this package needs {ABI}: reinstall")
        isa = ""
        if kind == "cpu":
            handle.prune_bench_cpu_isa.restype = ctypes.c_char_p
            isa = handle.prune_bench_cpu_isa().decode()
        return Library(kind, str(path), handle.prune_bench_version().decode(), isa, "", handle)
    except (OSError, AttributeError) as error:
        return _absent(kind, f"{path} cannot be loaded: {error}")


def cpu_has_isa(isa: str) -> bool:
    """Whether the CPU library is there and this processor runs its ``isa`` variant."""
    handle = load("cpu").handle
    return handle is not None and bool(handle.prune_bench_cpu_has_isa(ISA_IDS[isa]))


def _folders() -> list[Path]:
    package = sys.modules[__package__ or "methods.kernels"]
    beside = Path(__file__).resolve().parent
    # An editable install leaves what CMake built in site-packages, where no package is imported from.
    installed = [Path(entry) / "methods" / "kernels" for entry in sys.path if entry]
    return list(dict.fromkeys([beside, *(Path(entry) for entry in package.__path__), *installed]))


def _file_name(kind: str) -> str:
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return f"libprune_bench_{kind}{suffix}"


def _absent(kind: str, reason: str) -> Library:
    return Library(kind, "", "", "", reason, None)
