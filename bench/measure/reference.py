"""A fixed matrix product, timed beside other work: what times are divided by before they are compared across runs."""

from __future__ import annotations

import time
from typing import Any, Final

import torch

__all__ = ["Reference"]

_SHAPE: Final = (256, 512, 1024)
_ROUNDS: Final = 8


class Reference:
    """Seconds of one float32 product [256, 512] x [512, 1024] by torch, sampled before and after what is measured.

    Torch's own product, so that no change of ours moves it. The mean over rounds, not the best: work that shares the
    machine lengthens what is measured by its share of the time, and the mean of these likewise. A sample takes some
    tens of milliseconds at most.
    """

    def __init__(self, device: str) -> None:
        tokens, columns, rows = _SHAPE
        self._device = torch.device(device)
        self._inputs = torch.ones(tokens, columns, device=self._device)
        self._weight = torch.ones(rows, columns, device=self._device)
        self._seconds: list[float] = []

    @torch.inference_mode()
    def sample(self) -> None:
        """Time the product anew, after one round that warms up."""
        for turn in range(_ROUNDS + 1):
            self._wait()
            began = time.perf_counter()
            torch.nn.functional.linear(self._inputs, self._weight)
            self._wait()
            if turn:
                self._seconds.append(time.perf_counter() - began)

    def facts(self) -> dict[str, Any]:
        """For a record's provenance: the operator, its mean seconds, and the least and most of all rounds."""
        return {
            "operator": f"F.linear float32 {'x'.join(map(str, _SHAPE))}",
            "seconds": sum(self._seconds) / len(self._seconds),
            "least": min(self._seconds),
            "most": max(self._seconds),
            "rounds": len(self._seconds),
        }

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
