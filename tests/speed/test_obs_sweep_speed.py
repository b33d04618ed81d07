"""Speed of the sweep beside what this processor could do: figures, never a gate.

The ceiling is measured in the same run: the rate of a float32 matrix product on as many threads, halved,
because the sweep rounds products and differences separately and so cannot fuse them.
"""

from __future__ import annotations

import time
from typing import Any

import cases
import pytest
import torch

from methods.kernels.operators import native_status, obs_sweep
from methods.kernels.twins import obs_sweep as twin


def unfused_ceiling() -> float:
    """FLOP/s of a float32 matrix product on the threads in use, halved; the best of many short ones."""
    a = torch.randn(512, 512)
    best = float("inf")
    for _ in range(100):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best / 2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", cases.SPEED, ids=str)
def test_obs_sweep(benchmark: Any, case: cases.SweepCase, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = cases.inputs(case)
        ceiling = unfused_ceiling()
        benchmark(obs_sweep, x.weight, x.factor, mask=x.mask, keep=case.keep, group=case.group, grid=x.grid)
    finally:
        torch.set_num_threads(before)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info.update(
        isa=native_status()[0].isa or "torch",
        flops=case.flops,
        bytes=case.bytes,
        gflops=round(case.flops / seconds / 1e9, 1),
        gbytes=round(case.bytes / seconds / 1e9, 2),
        of_ceiling=round(case.flops / seconds / ceiling, 3),
    )
    print(f"\n{case} threads={threads}: {benchmark.extra_info}")


def test_obs_sweep_twin(benchmark: Any) -> None:
    x = cases.inputs(cases.SPEED[0])
    benchmark(twin.obs_sweep, x.weight, x.factor, x.mask, 0, 0, None, None, 0)
