"""Another program's method through the grid: what its record says, and what a rerun skips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_llmcompressor import in_process
from saved_models import saved_with_tokenizer

from bench.executors.local import Outcome, execute
from bench.plan.cells import expand
from bench.plan.settings import gather
from bench.results.segments import Store
from methods.interface import Silent


class _Quiet(Silent):
    def plan(self, cells: Any) -> None: ...

    def cell(self, index: int, cell: Any) -> None: ...

    def cached(self, index: int, cell: Any) -> None: ...

    def done(self, index: int, cell: Any, status: str, summary: str) -> None: ...

    def close(self) -> None: ...


_METHOD = "llmcompressor-sparsegpt"


def _run(out: Path, model: Path, **flags: Any) -> Outcome:
    given = {
        "models": f"path:{model}",
        "methods": _METHOD,
        "protocol": "nano",
        "samples": "6",
        "windows": "2",
        "threads": "1",
        **flags,
    }
    return execute(expand(gather(given)), out, _Quiet(), force=False)


def test_records_hold_the_other_programs_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    in_process(monkeypatch)
    model = saved_with_tokenizer(tmp_path / "model", "opt")
    out = tmp_path / "out"
    assert _run(out, model) == Outcome(done=2)
    (record,) = [r for r in Store(out).records() if (r.method, r.phase) == (_METHOD, "prune")]
    outside = record.provenance["outside"]
    assert outside["program"] == "llm-compressor"
    assert outside["versions"]["torch"] == record.provenance["environment"]["versions"]["torch"]
    assert outside["schedule"].startswith("blockwise")
    assert record.metric("prune_time") == record.seconds["solve"]
    assert {"outside_import", "outside_load", "outside_write"} <= set(record.seconds)
    assert record.metric("peak_memory") >= record.metric("base_memory") > 0  # type: ignore[operator]
    assert record.metric("sparsity") == pytest.approx(0.5)
    assert set(record.parameters) == {"percdamp", "blocksize", "batch", "schedule", "hessian_dtype"}
    elsewhere = {"assignments": [f"{_METHOD}.python=/another/place", f"{_METHOD}.silence=5"]}
    assert _run(out, model, **elsewhere) == Outcome(cached=2), "where it lies changes nothing"
    in_process(monkeypatch, version="0.14.10")
    assert _run(out, model) == Outcome(done=1, cached=1), "its version does"
