"""What the speed suite measures with: ceilings of this machine, and ratios inside one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["matrix_rate", "on_threads", "ratio"]


def matrix_rate() -> float:
    """FLOP/s of a float32 matrix product on the threads in use: the best of many short ones."""
    a = torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def ratio(fast: Callable[[], Any], slow: Callable[[], Any], rounds: int = 5) -> dict[str, float]:
    """How many times as long ``slow`` takes: median and quartiles of rounds in which both run, who first in turns."""
    found = []
    fast(), slow()  # both warm
    for turn in range(rounds):
        took = {}
        for name, call in ((0, fast), (1, slow)) if turn % 2 == 0 else ((1, slow), (0, fast)):
            start = time.perf_counter()
            call()
            took[name] = time.perf_counter() - start
        found.append(took[1] / took[0])
    lower, median, upper = statistics.quantiles(found, n=4)
    return {"ratio": round(median, 3), "ratio_q25": round(lower, 3), "ratio_q75": round(upper, 3)}


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Torch on so many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
