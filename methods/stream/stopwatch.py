"""Seconds by phase, with the device's queue drained at every boundary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up wall seconds under names; phases must not nest."""

    def __init__(self, device: torch.device, start: Mapping[str, float] | None = None) -> None:
        self._device = device
        self.seconds: dict[str, float] = dict(start or {})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body under ``name``."""
        self._drain()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._drain()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def _drain(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
