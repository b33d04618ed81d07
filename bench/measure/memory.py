"""Peak memory of a phase: anonymous resident memory on the host, allocated memory on a GPU."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from types import TracebackType

import psutil

from methods.stream.heap import give_back

__all__ = ["PeakMemory", "anonymous_bytes"]

_PERIOD = 0.005


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs, in bytes; all resident memory where the system does not say."""
    try:
        with Path("/proc/self/status").open(encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Samples memory while its body runs: ``base`` at entry, ``peak`` highest seen, in bytes.

    On a GPU it is the allocator's own peak; on the CPU anonymous resident memory every 5 ms, so that mapped
    checkpoint files (which the system can drop) do not count.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.base = 0
        self.peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self.base = int(torch.cuda.memory_allocated(self.device))
            return self
        # what was freed before must not serve what comes unseen
        gc.collect()
        give_back()
        self.base = self.peak = anonymous_bytes()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            import torch

            self.peak = int(torch.cuda.max_memory_allocated(self.device))
            return
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    def _sample(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.peak = max(self.peak, anonymous_bytes())
