"""Matrices, numbers and verdicts of kernel timings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.measure import ceiling, kernels
from bench.measure.ceiling import Ceilings
from bench.measure.kernels import Prepared, make_weight, verdict
from bench.plan.kernels import Problem, Row

_ROWS = tuple(Row(name, batch) for batch in (1, 3) for name in ("bitmap", "nm", "csr", "dense"))


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cache_bytes", lambda: 30_000)


@pytest.mark.parametrize(("target", "zeros"), [("50%", 1920), ("33.3%", 1278), ("2:4", 1920), ("1:8", 3360)])
def test_matrices_have_exactly_the_zeros_asked_for(target: str, zeros: int) -> None:
    weight = make_weight(Problem(60, 64, "float32", target, ()))
    assert int((weight == 0).sum()) == zeros
    if ":" in target:
        keep, group = map(int, target.split(":"))
        assert bool(((weight != 0).unflatten(1, (-1, group)).sum(2) == keep).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_every_format_is_right_and_measured(dtype: str) -> None:
    formats = [
        name for name in ("bitmap", "nm", "csr", "dense") if name != "csr" or dtype in ("float32", "int8")
    ]
    prepared = Prepared(Problem(60, 64, dtype, "2:4", _ROWS), formats, 3)
    assert prepared.copies > 1
    for batch in (1, 3):
        found = prepared.measure(formats, batch, 3, Ceilings(1e10, 1e11))
        assert [row.format for row in found] == formats
        for row in found:
            assert row.times.shape == (3,) and row.median > 0 and row.nbytes > 0
            assert row.error <= row.allowed < 0.05 and row.verdict in ("faster", "not faster")
            assert 0 < row.roofline < 1
        assert found[-1].speedup == 1.0 and found[-1].baseline in ("F.linear", "W @ X.T", "ours")
        assert found[0].nbytes < 60 * 64 * 4


def test_a_wrong_kernel_is_called_wrong() -> None:
    prepared = Prepared(Problem(60, 64, "float32", "50%", _ROWS), ("bitmap", "dense"), 1)
    first = prepared.candidates["bitmap"].calls[0]
    first.weight.values[7] += 0.5  # type: ignore[attr-defined]
    wrong, dense = prepared.measure(("bitmap", "dense"), 1, 3, Ceilings(1e10, 1e11))
    assert wrong.verdict == "wrong" and dense.verdict == "not faster"


def test_verdicts_follow_quartiles_and_errors() -> None:
    fast, slow, mixed = (np.array(times) for times in ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [1.0, 1.9, 2.4]))
    assert verdict(fast, slow, 0.0, 1e-6) == "faster"
    assert verdict(slow, fast, 0.0, 1e-6) == "not faster"
    assert verdict(mixed, slow, 0.0, 1e-6) == "not faster"
    assert verdict(fast, slow, 1e-5, 1e-6) == verdict(fast, slow, float("nan"), 1e-6) == "wrong"


def test_ceilings_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "_STREAM", 16 << 20)
    found = ceiling.measure(torch.bfloat16, 2)
    assert 1e8 < found.bandwidth < 1e13 and 1e8 < found.rate < 1e15
    assert found.raised(Ceilings(1.0, 1e18)) == Ceilings(found.bandwidth, 1e18)
    assert ceiling.cache_bytes() >= 1 << 18
    assert torch.get_num_threads() >= 1
