"""The report's account of memory: budgets kept and exceeded, the bound from its terms, the curve over sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sample_records import record

from bench.results.records import Metric, Record
from bench.results.segments import Store
from reports.figures.memory import memory_charts
from reports.memory import memory_table
from reports.pages import write_report
from reports.wording import MISSING

LEAST = {"block": 100e6, "hessians": 800e6, "states": 33e6, "embedding": 200e6}


def _prune(model: str, parameters: int, peak: Any, **memory: Any) -> Record:
    facts = {"budget": 2e9, "predicted": 1.9e9, "peak": peak, "base": 300e6, "least": LEAST, **memory}
    return record(
        cell=model,
        subject=model,
        model=model,
        metrics=(
            Metric(name="sparsity", unit="1", value=0.5),
            Metric(name="parameters", unit="1", value=parameters),
            Metric(name="bytes", unit="byte", value=2 * parameters),
        ),
        parameters={"layers": "blocks=3"},
        provenance={"memory": facts},
    )


def test_a_row_says_what_was_allowed_taken_and_exceeded() -> None:
    small, large = _prune("small", 10**9, 1.7e9), _prune("large", 2 * 10**9, 2.2e9)
    rows = {row[0]: row for row in memory_table([large, small, record()]).rows}
    assert list(rows) == ["small", "large"]
    # 300 MB and 1.3 x 1133 MB
    assert rows["small"][3:] == (
        *("blocks=3", "prune", "float32", "2 GB", "1.9 GB", "1.7 GB", "1.77 GB", "yes"),
    )
    assert rows["large"][-1] == "over the budget and the bound"


def test_hostile_figures_are_no_figures() -> None:
    for memory in ({"peak": "1"}, {"budget": None}, {"peak": float("nan")}, {"budget": True}):
        assert not memory_table([_prune("x", 1, **{"peak": 1e9, **memory})]).rows
    odd = _prune("<b>", 10**9, 1e9, least={"block": "much"}, predicted=[1])
    assert memory_table([odd]).rows[0][7:10] == (MISSING, "1 GB", MISSING)
    assert not memory_table([odd.model_copy(update={"provenance": {"memory": 7}})]).rows


def test_the_curve_is_drawn_from_two_sizes_on(tmp_path: Path) -> None:
    records = [_prune(f"m{size}", size * 10**9, size * 1e9) for size in (1, 2, 3)]
    assert memory_charts(records[:1]) == []
    (points,) = memory_charts(records)[0].specification["datasets"].values()
    assert [(p["parameters"], p["gigabytes"]) for p in points if p["line"] == "measured peak"] == [
        (size * 10**9, size) for size in (1, 2, 3)
    ]
    with Store(tmp_path, create=True) as store:
        for entry in records:
            store.append(entry)
    report = write_report(tmp_path)
    page, markdown = report.page.read_text(), report.markdown.read_text()
    assert 'id="memory-curve"' in page and "over the budget" in page
    assert "## Memory" in markdown and "| m3 | sparsegpt" in markdown
