"""One cell's calibration by one worker and by two of a real Ray, in turns: Hessians, and the time a prune takes.

`pytest tests/speed/test_calibration_speed.py -s -o addopts=--import-mode=importlib --benchmark-only`; BENCH_SPEED_MODEL is
nano-llama, or smollm2-135m once pulled; BENCH_SPEED_ROUNDS. One thread each: two cores are needed to show what two workers
bring.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_clusters import Killer, cluster, run
from torch import Tensor

from bench.executors.grid import Outcome
from bench.models.load import resolve
from bench.results.segments import Store
from methods.interface import Calibration, Matrix, Run
from methods.layerwise.rule import Solution
from methods.moments import Moments, Statistic
from methods.stream.shares import Share
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.stream.walk import walk

MODEL = os.environ.get("BENCH_SPEED_MODEL", "nano-llama")
ROUNDS = int(os.environ.get("BENCH_SPEED_ROUNDS", "3"))
WINDOWS, LENGTH = 32, 256


def _hessians(out: Path, workers: int, dtype: torch.dtype) -> dict[tuple[int, str], Tensor]:
    """The Gram matrix of every matrix's inputs, in a walk that changes no weight."""
    found = {}

    def seen(
        index: int, matrix: Matrix, weight: Tensor, moments: Moments | None, stored: torch.dtype
    ) -> Solution:
        assert moments is not None
        found[index, matrix.name] = moments.gram.matrix.clone()
        return Solution(weight, torch.zeros_like(weight, dtype=torch.bool))

    folder = resolve(MODEL).path
    settings: dict[str, Any] = {"hessian_dtype": dtype, "batch_tokens": LENGTH}
    shares = [Share(CheckpointSource(folder), Run(**settings)) for _ in range(workers - 1)]
    source = CheckpointSource(folder)
    tokens = torch.randint(
        source.shape.vocabulary, (WINDOWS + 2, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    drawn = Calibration(tokens[:WINDOWS], tokens[WINDOWS:])
    walk(source, drawn, seen, BlockFolder(out), Run(workers=shares, **settings), needs=Statistic.GRAM)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hessians_of_two_shares(benchmark: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    two = benchmark.pedantic(lambda: _hessians(tmp_path / "two", 2, dtype), rounds=1)
    worst = 0.0
    for name, one in _hessians(tmp_path / "one", 1, dtype).items():
        worst = max(worst, float((two[name] - one).norm() / one.norm()))
    benchmark.extra_info.update(model=MODEL, matrices=len(two), largest_relative_difference=worst)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
    assert worst < (1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.timeout(3600)
def test_prune_by_two_workers(benchmark: Any, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "models": MODEL,
        "methods": "sparsegpt",
        "sparsity": "0.5",
        "protocol": "nano",
        "samples": str(WINDOWS),
        "length": str(LENGTH),
        "eval_length": str(LENGTH),
        "windows": "2",
        "force": True,
    }
    took: dict[str, list[float]] = {"1": [], "2": []}
    phases: dict[str, Any] = {}

    def both() -> None:
        for workers in ("1", "2") if len(took["1"]) % 2 == 0 else ("2", "1"):
            out = tmp_path / workers
            killer = Killer(None, ())
            outcome = run(out, killer, address=nodes.address, calibration_workers=workers, **flags)
            assert outcome == Outcome(done=2), killer.ended
            record = next(r for r in Store(out).records() if r.phase == "prune" and r.method != "dense")
            took[workers].append(record.metric("prune_time") or 0.0)
            phases[workers] = {name: round(seconds, 2) for name, seconds in record.seconds.items()}

    with cluster(2) as nodes:
        benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    one, two = (statistics.median(took[workers][1:]) for workers in ("1", "2"))
    ratios = [first / second for first, second in zip(took["1"][1:], took["2"][1:], strict=True)]
    benchmark.extra_info.update(
        model=MODEL, one_s=one, two_s=two, ratio=statistics.median(ratios), ratios=ratios, seconds=phases
    )
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
