"""Speed of what a prune is made of, and of a whole prune: figures, never a gate.

Every figure says its FLOPs, the share of a matrix product's rate measured in the same run, and the ratio to the slow
twin, taken in turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ratios import matrix_rate, on_threads, ratio

from bench.models.load import resolve
from methods import registry
from methods.interface import Calibration, Run
from methods.kernels import operators
from methods.kernels.twins import obs_sweep as twin
from methods.layerwise import sparsegpt as rule
from methods.layerwise.rule import Budget
from methods.moments import Gram, factorise
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

THREADS = [1, 2]
_TOKENS = 4096


def _told(benchmark: Any, flops: float, **more: Any) -> None:
    seconds = benchmark.stats.stats.min
    rate = flops / seconds
    benchmark.extra_info.update(
        gflops=round(rate / 1e9, 1), of_ceiling=round(rate / more.pop("ceiling"), 3), **more
    )
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("columns", [576, 1536, 4096])
def test_gram_of_one_triangle(benchmark: Any, columns: int, threads: int) -> None:
    x = torch.randn(1, _TOKENS, columns)

    def ours() -> Gram:
        gram = Gram(columns, torch.float32, torch.device("cpu"))
        gram.add(x)
        return gram

    whole = torch.zeros(columns, columns)
    with on_threads(threads):
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
        against = ratio(lambda: whole.addmm_(x[0].T, x[0]), ours)
        # the triangle's share of the square's operations, as the bands take them
        _told(benchmark, _TOKENS * columns * (columns + 1), ceiling=matrix_rate(), **against)


@pytest.mark.parametrize("threads", THREADS)
def test_factor(benchmark: Any, threads: int) -> None:
    columns = 1536
    x = torch.randn(2 * columns, columns)
    hessian = x.T @ x
    with on_threads(threads):
        benchmark.pedantic(lambda: factorise(hessian, 0.01), rounds=3, warmup_rounds=1)
        # a Cholesky factor (n³/3) and the inverse of a triangle (n³/3)
        _told(benchmark, 2 * columns**3 / 3, ceiling=matrix_rate())


@pytest.mark.parametrize("target", ["50%", "2:4"])
@pytest.mark.parametrize(("rows", "columns"), [(1536, 576), (4096, 4096)])
def test_solve(benchmark: Any, rows: int, columns: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2 * columns, columns)
    factor = factorise(x.T @ x, 0.01)
    weight = torch.randn(rows, columns)
    budget = Budget(keep=2, group=4) if target == "2:4" else Budget(remove=rows * columns // 2)

    def solve() -> None:
        rule.sparsegpt(weight.clone(), factor, budget)

    def by_twin() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(rule, "obs_sweep", _twin)
            solve()

    benchmark.pedantic(solve, rounds=3, warmup_rounds=1)
    against = ratio(solve, by_twin, rounds=2 if columns == 4096 else 5)
    # two operations for every weight and later column
    _told(benchmark, rows * columns**2, ceiling=matrix_rate(), **against)


def _twin(
    weight: torch.Tensor,
    factor: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    keep: int = 0,
    group: int = 0,
    grid: Any = None,
    divisor: torch.Tensor | None = None,
) -> operators.Sweep:
    assert grid is None
    return operators.Sweep(*twin.obs_sweep(weight, factor, mask, keep, group, None, None, 0, divisor))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_whole_prune(benchmark: Any, method: str, threads: int, tmp_path: Path) -> None:
    checkpoint = resolve("nano-llama")
    source = CheckpointSource(checkpoint.path, dtype=torch.float32, device="cpu")
    tokens = torch.randint(0, source.shape.vocabulary, (64, 256), generator=torch.Generator().manual_seed(0))
    pruner = registry.get(method, {})
    number = iter(range(1000))

    def prune() -> None:
        pruner.prune(
            source,
            Calibration(tokens, tokens[:8]),
            Target.parse("50%"),
            BlockFolder(tmp_path / str(next(number))),
            Run(),
        )

    with on_threads(threads):
        benchmark.pedantic(prune, rounds=3, warmup_rounds=1)
        weights = source.shape.blocks * sum(m.size for m in source.family.matrices(source.shape))
        # the linears alone: one forward pass, and two products for the held-out error
        windows = (tokens.numel() if method != "magnitude" else 0) + 3 * tokens[:8].numel()
        _told(benchmark, 2.0 * weights * windows, ceiling=matrix_rate())
