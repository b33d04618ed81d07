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
from typing import Any

from methods.kernels._structs import ObsSweepParams

__all__ = ["ABI", "ISA_IDS", "Library", "ObsSweepParams", "cpu_has_isa", "load"]

ABI = 4
ISA_IDS = {"best": 0, "portable": 1, "avx2": 2, "avx512": 3, "avx512vbmi2": 4}


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
        status = self.call("obs_sweep", params, *(() if self.kind == "cpu" else (ctypes.c_void_p(stream),)))
        self.expect(status, f"obs_sweep on {params.rows} x {params.columns}")

    def call(self, name: str, params: ctypes.Structure, *more: Any) -> int:
        """The status that ``prune_bench_<kind>_<name>`` returns. Raises RuntimeError without a library."""
        if self.handle is None:
            raise RuntimeError(f"no {self.kind} library: {self.reason}")
        status: int = getattr(self.handle, f"prune_bench_{self.kind}_{name}")(ctypes.byref(params), *more)
        return status

    def expect(self, status: int, what: str) -> None:
        """Raise RuntimeError with the library's own line unless ``status`` is 0."""
        if status != 0 and self.handle is not None:
            line = self.handle.prune_bench_message(status).decode()
            raise RuntimeError(f"native {what}: {line} (status {status})")


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
