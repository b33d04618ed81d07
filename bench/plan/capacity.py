"""What the machine has: free memory, disk and the rate it multiplies at."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "existing", "free_memory", "machine", "measured_rate"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is, in bytes: memory for the cell, disk for the run, disk for the model cache."""

    memory: int
    disk: int
    cache: int
    one_disk: bool
    """Whether run and cache share a disk."""
    host: int | None = None
    """Free memory of the host, where the cell runs on a GPU."""


def machine(out: Path, device: str = "cpu") -> Machine:
    """Free memory (within the cgroup's limit), free disk of the run's folder and of the model cache."""
    from bench.models.cache import cache_root

    run_at, cache_at = existing(out), existing(cache_root())
    return Machine(
        memory=free_memory(device),
        disk=shutil.disk_usage(run_at).free,
        cache=shutil.disk_usage(cache_at).free,
        one_disk=run_at.stat().st_dev == cache_at.stat().st_dev,
        host=None if device == "cpu" else free_memory("cpu"),
    )


def measured_rate(device: str, dtype: str, threads: int) -> float:
    """FLOP/s of a matrix product on this machine, halved, as a walk reaches about half; takes about 0.1 s."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = 512 if device == "cpu" else 4096
        matrix = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
        best = float("inf")
        matrix @ matrix
        for _ in range(5):
            start = time.perf_counter()
            product = matrix @ matrix
            float(product[0, 0])  # waits for a GPU
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return size**3 / best


def free_memory(device: str) -> int:
    """Bytes of free memory: of the host within its cgroup's limit, or of the GPU ``cuda:N``."""
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used + (_inactive_file() or 0)))
    return free


def _cgroup_bytes(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _inactive_file() -> int | None:
    """Bytes of page cache that the kernel gives back when asked."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def existing(path: Path) -> Path:
    """The nearest folder upwards that is there."""
    absolute = path.expanduser().absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.exists())
