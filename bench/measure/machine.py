"""What a figure was measured on: versions, processor, threads, commit."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment", "versions"]

_PACKAGES = ("prune-bench", "torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what can change a figure."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """The git commit of the source tree this runs from, ``+changes`` where it is not clean; empty outside a tree."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def environment(device: str, threads: int) -> dict[str, Any]:
    """What must be equal for a prune to go on in the middle, and for speeds to be compared."""
    import torch

    from methods.kernels.operators import native_status

    native = native_status()[1 if device.startswith("cuda") else 0]
    found: dict[str, Any] = {
        "processor": processor(),
        "isa": (native.isa if native.loaded else "") or torch.backends.cpu.get_cpu_capability(),
        "native": native.version if native.loaded else "torch reference",
        "threads": threads,
        "device": device,
        "platform": platform.platform(aliased=True, terse=True),
        "versions": versions(),
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found
