"""`bench list`, `pull`, `doctor` and `report`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from sample_records import record

from bench.results.records import Metric
from bench.results.segments import Store
from methods.errors import ModelUnavailable

COLUMNS = "cell,status,model,method,target,seed,protocol,metric,unit,value,recovery"


@pytest.mark.parametrize(
    ("kind", "key", "some"),
    [
        ("models", "id", {"opt-125m", "llama-3.2-3b", "nano-bloom", "smollm2-135m"}),
        ("methods", "method", {"magnitude", "sparsegpt"}),
        ("allocations", "allocation", {"uniform", "global"}),
        ("parameters", "parameter", {"sparsegpt.percdamp"}),
        ("protocols", "protocol", {"nano", "lab", "paper"}),
        ("texts", "text", {"kjv", "wikitext2", "ptb", "c4"}),
        ("targets", "target", {"50%", "2:4"}),
        ("evaluations", "evaluation", {"perplexity"}),
    ],
)
def test_lists(bench: Any, kind: str, key: str, some: set[str]) -> None:
    rows = json.loads(bench("list", kind, "--json").out)
    names = {row[key] for row in rows}
    assert some <= names
    shown = bench("list", kind)
    assert shown.code == 0
    assert all(name in shown.out for name in names)
    assert "\x1b" not in shown.out


@pytest.mark.usefixtures("fake_methods")
def test_allocations_refinements_and_shorthands_are_listed(bench: Any) -> None:
    methods = {row["method"]: row for row in json.loads(bench("list", "methods", "--json").out)}
    assert methods["turned"]["summary"] == "short for magnitude+rotate: turning"
    assert methods["turned"]["parameters"] == {"rotate.by": 2}
    (refinement,) = (
        row for row in json.loads(bench("list", "refinements", "--json").out) if row["refinement"] == "rotate"
    )
    assert refinement["parameters"] == {"by": 1, "lambda": 0.0}
    assert "rotate" in bench("list", "refinements").out
    parameters = {row["parameter"] for row in json.loads(bench("list", "parameters", "--json").out)}
    assert {"rotate.by", "skewed.lean", "sparsegpt.percdamp"} <= parameters


def test_protocols_name_the_context_and_all_windows(bench: Any) -> None:
    rows = [line.replace("|", " ").split() for line in bench("list", "protocols").out.splitlines()]
    ends = {row[0]: row[-2:] for row in rows if row}
    assert ends["nano"] == ["context", "all"]
    assert ends["lab"] == ["512", "64"]
    assert ends["paper"] == ["2048", "all"]


def test_a_bare_list_shows_models_and_methods(bench: Any) -> None:
    assert set(json.loads(bench("list", "--json").out)) == {"models", "methods"}
    assert "sparsegpt" in bench("list").out


def test_pull_goes_on_after_a_failure(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Pulled:
        def __init__(self, name: str) -> None:
            self.id, self.label, self.path, self.revision = name, "labelled", tmp_path, "abc"

    def pull(model: str, *, yes: bool, progress: Any) -> Pulled:
        progress(f"{model}: fetching")
        if model == "opt-125m":
            raise ModelUnavailable("opt-125m cannot be had")
        assert yes
        return Pulled(model)

    monkeypatch.setattr("bench.models.load.pull", pull)
    result = bench("pull", "opt-125m", "bloom-560m,bloom-1b1", "--yes")
    assert result.code == 1
    assert result.err.splitlines() == [
        "opt-125m: fetching",
        "error: opt-125m cannot be had",
        "bloom-560m: fetching",
        "bloom-1b1: fetching",
    ]
    assert result.out.splitlines() == [
        f"{name} (labelled): {tmp_path} at abc" for name in ("bloom-560m", "bloom-1b1")
    ]
    assert bench("pull", "bloom-1b1", "--yes", "--quiet").out == ""


def test_pull_without_a_hub_fails_in_one_line(bench: Any) -> None:
    result = bench("pull", "opt-1.3b", "--quiet")
    assert result.code == 1
    assert "opt-1.3b" in result.error


def test_doctor(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "data"))
    result = bench("doctor", "--json")
    found = {check["name"]: check for check in json.loads(result.out)["checks"]}
    assert set(found) == {
        *("versions", "native kernels", "threads", "memory", "disk", "gpu", "packaged models"),
        *("cached models", "kjv text", "data folder", "hub"),
    }
    assert found["data folder"]["texts"] == ["ptb"]
    assert found["hub"]["reachable"] is False
    assert found["threads"]["usable"] >= 1
    assert found["versions"]["versions"]["torch"]
    assert len(found["native kernels"]["libraries"]) == 2
    bad = [check for check in found.values() if check["state"] == "bad"]
    assert result.code == (1 if bad else 0)
    assert "does not answer" in bench("doctor").out


def test_doctor_says_what_stands_in_the_way(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.models.load.cached", lambda model: False)
    result = bench("doctor", "--data-dir", "nowhere", "--json")
    states = {check["name"]: check["state"] for check in json.loads(result.out)["checks"]}
    assert states["packaged models"] == "bad"
    assert states["data folder"] == "bad"
    assert result.code == 1


def test_doctor_is_content_offline(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = {check["name"]: check for check in json.loads(bench("doctor", "--json").out)["checks"]}
    assert checks["hub"] == {
        "name": "hub",
        "state": "note",
        "text": "offline by HF_HUB_OFFLINE",
        "reachable": False,
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "bench-out"
    with Store(folder, create=True) as store:
        for cell, method, target, seed, value in (
            ("c0", "dense", "0%", None, 20.0),
            ("c1", "sparsegpt", "50%", 0, 25.5),
            ("c2", "magnitude", "50%", None, math.nan),
        ):
            store.append(
                record(
                    phase="perplexity",
                    cell=cell,
                    subject=cell,
                    method=method,
                    target=target,
                    seed=seed,
                    protocol="nano/kjv",
                    metrics=(Metric(name="perplexity", unit="1", value=value),),
                )
            )
        store.append(record(cell="c3", subject="c3", method="a,b", status="failed", reason="no <b>hub</b>"))
    return folder


def test_csv_is_tidy_rows_and_nothing_else(bench: Any, out: Path) -> None:
    result = bench("report", "--format", "csv")
    assert result.code == 0
    assert not result.err
    assert result.out.splitlines()[0] == COLUMNS
    rows = list(csv.DictReader(result.out.splitlines()))
    assert len(rows) == 4
    assert all(set(row) == set(COLUMNS.split(",")) for row in rows)
    by_cell = {row["cell"]: row for row in rows}
    assert by_cell["c1"]["value"] == "25.5"
    assert (by_cell["c1"]["metric"], by_cell["c1"]["unit"], by_cell["c1"]["seed"]) == ("perplexity", "1", "0")
    assert by_cell["c0"]["method"] == "dense"
    assert math.isnan(float(by_cell["c2"]["value"]))
    assert by_cell["c3"]["method"] == "a,b"


def test_json_has_no_bare_nan(bench: Any, out: Path) -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(text)

    rows = json.loads(bench("report", "--format", "json").out, parse_constant=refuse)
    assert {row["cell"]: row["value"] for row in rows}["c2"] == "NaN"


def test_the_other_forms(bench: Any, out: Path) -> None:
    assert "sparsegpt" in bench("report").out
    assert "\x1b" not in bench("report").out
    markdown = bench("report", "--format", "markdown").out
    assert markdown.startswith("#")
    assert "sparsegpt" in markdown
    result = bench("report", "--format", "html")
    page = Path(result.out.strip().removeprefix("report: "))
    assert page.is_file()
    assert "<b>hub</b>" not in page.read_text(encoding="utf-8")


def test_damage_is_told_beside_the_rows(bench: Any, out: Path) -> None:
    segment = next((out / "records").glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes()[:-20])
    result = bench("report", "--format", "csv")
    assert len(result.out.splitlines()) == 4
    assert result.err.startswith("warning: ")
    assert "are no record" in result.err
