"""What this machine can do at most, measured: bytes a second read from memory, operations a second of a product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from methods.kernels.products import dense_matmul

__all__ = ["Ceilings", "cache_bytes", "measure"]

_STREAM = 256 << 20
"""Bytes read at once, far more than caches hold."""
_GEMM = (512, 1536, 1536)
_DEFAULT_CACHE = 32 << 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Byte/s of reading memory and FLOP/s of dense products, the best seen, at the threads that torch has now."""

    bandwidth: float
    rate: float

    def raised(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements each: what else the machine does only ever lowers one."""
        return Ceilings(max(self.bandwidth, other.bandwidth), max(self.rate, other.rate))


def measure(dtype: torch.dtype = torch.float32, repeats: int = 3) -> Ceilings:
    """Measure both; the rate is that of products in ``dtype``, which processors may have units for.

    Bandwidth is the best of a dot product, and of our own dense product with one input.
    """
    flat = torch.ones(_STREAM // 4)
    matrix, x = flat.view(-1, 4096), torch.ones(1, 4096)
    reads: tuple[Callable[[], object], ...] = (
        lambda: dense_matmul(x, matrix),
        lambda: torch.dot(flat[: len(flat) // 2], flat[len(flat) // 2 :]),
    )
    fastest = min(_best(read, repeats) for read in reads)
    tokens, columns, rows = _GEMM
    inputs, weight = torch.ones(tokens, columns, dtype=dtype), torch.ones(rows, columns, dtype=dtype)
    gemm = _best(lambda: torch.nn.functional.linear(inputs, weight), repeats)
    return Ceilings(_STREAM / fastest, 2 * tokens * columns * rows / gemm)


def cache_bytes() -> int:
    """Bytes of the largest cache, as the system tells."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
        except (OSError, ValueError):
            continue
    return max(sizes, default=_DEFAULT_CACHE)


@torch.inference_mode()
def _best(run: Callable[[], object], repeats: int) -> float:
    run()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)
