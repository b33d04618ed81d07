"""What a plan reads off the machine it is made on."""

from __future__ import annotations

import os

__all__ = ["available_threads", "batch_tokens"]


def batch_tokens(device: str) -> int:
    """Tokens of a forward batch: activations that stay in a CPU's caches, or enough to fill a GPU."""
    return 8192 if device.startswith("cuda") else 2048


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
