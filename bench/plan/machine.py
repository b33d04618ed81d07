"""What a plan reads off the machine it is made on."""

from __future__ import annotations

import os

__all__ = ["available_threads", "batch_tokens", "scoring_tokens", "tile_columns"]


def batch_tokens(device: str) -> int:
    """Tokens of a forward batch: activations that stay in a CPU's caches, or enough to fill a GPU."""
    return 8192 if device.startswith("cuda") else 2048


def scoring_tokens(batch_tokens: int, *, on_cuda: bool) -> int:
    """Tokens of a forward batch that is scored: no Hessian wants many rows, so a CPU's caches hold more of a block's work."""
    return batch_tokens if on_cuda else min(batch_tokens, 1024)


def tile_columns(rows: int, *, on_cuda: bool) -> int:
    """Columns of the vocabulary that logits of so many rows are made for at a time: in a CPU's caches, or 64 MiB of a GPU.

    On the CPU the fastest of 512 to 8192 for 511 to 2044 rows of width 576 on one AVX-512 core.
    """
    return max(1024, (64 << 20) // (4 * max(rows, 1))) if on_cuda else 1024


def available_threads() -> int:
    """CPU cores this process may use: its affinity, or less where a cgroup grants less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123 - a kernel file
            quota, period = file.read().split()[:2]
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return cores
