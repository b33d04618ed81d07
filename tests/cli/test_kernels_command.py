"""`bench kernels` as typed: rows, store, resumption, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.measure import kernels
from bench.results.segments import Store
from bench.results.values import load_values
from bench.run.kernels import FIELDS

_WORDS = ("kernels", "--shapes", "60x64", "--batch", "1,2", "--threads", "1", "--repeats", "3")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.ceiling._STREAM", 8 << 20)
    monkeypatch.setattr("bench.measure.kernels.cache_bytes", lambda: 30_000)


def _rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_json_rows_and_a_rerun_that_measures_nothing(bench: Any, tmp_path: Path) -> None:
    words = (*_WORDS, "--format", "bitmap,dense", "--out", str(tmp_path / "out"), "--json")
    first = bench(*words)
    assert first.code == 0 and "[1/1] 60x64 float32 50%: 4 rows" in first.err
    rows = _rows(first.out)
    assert [(row["format"], row["batch"]) for row in rows] == [
        *(("bitmap", 1), ("dense", 1), ("bitmap", 2), ("dense", 2))
    ]
    for row in rows:
        assert tuple(row)[: len(FIELDS)] == FIELDS
        assert (row["shape"], row["sparsity"], row["pattern"]) == ("60x64", 0.5, "unstructured")
        assert (row["dtype"], row["threads"]) == ("float32", 1)
        assert row["verdict"] in ("faster", "not faster") and row["max_rel_error"] < 1e-5
        assert row["q25_s"] <= row["median_s"] <= row["q75_s"]
    again = bench(*words)
    assert again.out == first.out and again.err == ""
    records = Store(tmp_path / "out").records()
    assert {record.phase for record in records} == {"kernels"} and len(records) == 4
    assert load_values(tmp_path / "out", records[0].values)["times"].shape == (3,)
    more = bench(*words[:-1], "--json", "--sparsity", "0.5,0.75")
    assert "2/2" in more.err and "1/2" not in more.err and len(_rows(more.out)) == 8
    forced = bench(*words, "--force")
    assert "4 rows" in forced.err and len(Store(tmp_path / "out").history()) == 12


def test_a_killed_run_keeps_its_rows_and_says_how_to_resume(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = kernels.Prepared.measure

    def stopped(self: kernels.Prepared, formats: Any, batch: int, *more: Any) -> Any:
        if batch == 2:
            raise KeyboardInterrupt
        return original(self, formats, batch, *more)

    monkeypatch.setattr(kernels.Prepared, "measure", stopped)
    out = str(tmp_path / "out")
    first = bench(*_WORDS, "--format", "bitmap", "--out", out, "--quiet", "--json")
    assert first.code == 130 and "resume with: bench kernels --shapes 60x64" in first.error
    assert len(_rows(first.out)) == 1
    monkeypatch.undo()
    second = bench(*_WORDS, "--format", "bitmap", "--out", out, "--json")
    assert second.code == 0 and "1 rows" in second.err
    assert _rows(second.out)[0] == _rows(first.out)[0]


def test_wrong_rows_fail_the_command(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.Prepared, "_allowed", lambda _self, _plain: -1.0)
    found = bench(*_WORDS, "--format", "bitmap", "--out", str(tmp_path / "out"), "--quiet")
    assert found.code == 1 and "2 of 2 rows are wrong" in found.error
    record = Store(tmp_path / "out").records()[0]
    assert "exceeds" in record.warnings[0]


def test_tables_reports_and_refusals(bench: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    words = (*_WORDS, "--dtype", "bfloat16", "--pattern", "2:4", "--format", "nm,csr", "--out", out)
    found = bench(*words)
    assert found.code == 0 and "csr: refused, torch has no CSR product in bfloat16" in found.err
    assert "To best dense" in found.out and "2 measured, 1 refused" in found.out
    assert bench(*words).code == 0 and len(Store(tmp_path / "out").history()) == 3
    table, page = bench("report", "--out", out), bench("report", "--out", out, "--format", "markdown")
    for text in (table.out, page.out):
        assert "Kernels" in text and "60x64" in text and "torch has no CSR product" in text
    assert bench("report", "--out", out, "--format", "html").code == 0
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert 'id="kernels"' in html and "60x64" in html
    assert "median_s,s," in bench("report", "--out", out, "--format", "csv").out


def test_a_dry_run_measures_nothing(bench: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = bench(*_WORDS, "--out", str(out), "--dry-run")
    assert found.code == 0 and "6 rows of 1 problem" in found.out and not out.exists()
    plan = json.loads(bench(*_WORDS, "--out", str(out), "--dry-run", "--json").out)
    assert plan["rows"] == 6 and plan["problems"][0]["shape"] == "60x64"


def test_wrong_usage_is_one_line(bench: Any) -> None:
    found = bench("kernels", "--shapes", "60by64")
    assert found.code == 2 and "shape '60by64' is none; write rows x columns" in found.error
