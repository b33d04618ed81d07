"""Recovered results stand apart from one-shot ones in every table, chart and sentence, with their cost beside."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from sample_records import cell, record

from bench.results.records import Metric, Record
from bench.results.rows import COLUMNS, tidy
from bench.results.segments import Store
from reports.comparison import compare
from reports.figures import quality_chart
from reports.load import load
from reports.markdown import markdown_page
from reports.overview import overview
from reports.pages import write_report
from reports.standings import standings
from reports.tables import cost_table, problem_table, quality_table, title_of
from reports.terminal import terminal_table
from reports.tidy_csv import csv_lines


def trained(method: str, target: str, recovery: str, better: float = 0.5, **parameters: Any) -> list[Record]:
    """A finished recovered cell, far better than its one-shot twin, with what it took."""
    found = []
    for entry in cell("nano-opt", method, target):
        metrics = [
            Metric(name="perplexity", unit="1", value=metric.value * better)
            if metric.name == "perplexity" and metric.value is not None
            else metric
            for metric in entry.metrics
        ]
        if entry.phase == "prune":
            metrics += [
                Metric(name="recover_time", unit="s", value=120.0),
                Metric(name="recover_steps", unit="1", value=300),
                Metric(name="recover_tokens", unit="1", value=614_400),
                Metric(name="recover_parameters", unit="1", value=455_234),
            ]
        spelled = f"{recovery}{sorted(parameters.items())}"
        found.append(
            entry.model_copy(
                update={
                    "cell": entry.cell + spelled,
                    "subject": entry.subject + spelled,
                    "metrics": tuple(metrics),
                    "parameters": {"recovery": recovery, **parameters},
                    "seed": 0,
                }
            )
        )
    return found


@pytest.fixture
def records() -> list[Record]:
    return [
        *cell("nano-opt", "dense", "0%"),
        *cell("nano-opt", "sparsegpt", "80%"),
        *cell("nano-opt", "magnitude", "80%"),
        *trained("sparsegpt", "80%", "lora", 0.6),
        *trained("sparsegpt", "80%", "4xfull", 0.5),
        *trained("magnitude", "80%", "full", 0.7),
    ]


def test_groups_places_and_words(records: list[Record]) -> None:
    shot, recovered = compare(records).groups
    assert title_of(shot) == "nano-opt · nano/kjv"
    assert title_of(recovered) == "nano-opt · nano/kjv · with recovery"
    assert [row.name for row in shot.rows] == ["dense", "sparsegpt", "magnitude"]
    names = ["sparsegpt with 4xfull", "sparsegpt with lora", "magnitude with full"]
    assert [row.name for row in recovered.rows] == ["dense", *names]
    assert [[row.name for row in standing.rows] for standing in standings(shot)] == [
        ["sparsegpt", "magnitude"]
    ]
    assert [[row.name for row in standing.rows] for standing in standings(recovered)] == [names]
    # changes are against the dense model in both
    dense = shot.dense[0].perplexity.mean
    best = recovered.rows[1]
    assert dense is not None and best.perplexity.mean is not None
    assert best.change.mean == pytest.approx(best.perplexity.mean / dense)
    one, two = overview(compare(records))
    assert one.findings[0].leader == "sparsegpt" and "with" not in one.findings[0].text
    assert two.findings[0].leader == "sparsegpt with 4xfull"
    assert any("not to be ranked against one-shot results" in note for note in two.notes)
    assert not any("one-shot" in note for note in one.notes)


def test_cost_stands_beside_recovered_rows_only(records: list[Record]) -> None:
    shot, recovered = compare(records).groups
    columns = {"Recovery time", "Recovery steps", "Tokens trained on", "Parameters trained"}
    assert not columns & set(cost_table(shot).columns)
    table = cost_table(recovered)
    assert columns <= set(table.columns)
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert (row["Recovery time"], row["Recovery steps"]) == ("2 min 0 s", "300")
    assert (row["Tokens trained on"], row["Parameters trained"]) == ("614,400", "455,234")
    assert "no one-shot results" in quality_table(recovered).notes[0]
    assert not any("one-shot" in note for note in quality_table(shot).notes)


def test_the_charts_do_not_mix_them(records: list[Record]) -> None:
    shot, recovered = (str(quality_chart(group)) for group in compare(records).groups)
    assert "with lora" not in shot and "with lora" in recovered
    assert "'sparsegpt'" in shot and "'sparsegpt'" not in recovered


def test_namesakes_are_told_apart_by_what_differs() -> None:
    rows = (
        compare(
            [
                *trained("sparsegpt", "80%", "lora", **{"lora.lr": 0.1}),
                *trained("sparsegpt", "80%", "lora", **{"lora.lr": 0.2}),
            ]
        )
        .groups[0]
        .rows
    )
    assert {row.name for row in rows} == {f"sparsegpt with lora (lora.lr={lr})" for lr in (0.1, 0.2)}


def test_recovered_results_alone_have_no_change(records: list[Record]) -> None:
    (group,) = compare(trained("sparsegpt", "80%", "full")).groups
    assert group.key.recovered and group.rows[0].change.mean is None


def test_every_page_says_it(tmp_path: Path, records: list[Record]) -> None:
    refused = record(
        method="sparsegpt",
        target="50%+4bit",
        status="refused",
        reason="grids",
        parameters={"recovery": "full"},
        metrics=(),
    )
    warned = [entry.model_copy(update={"warnings": ("look",)}) for entry in records[-2:-1]]
    with Store(tmp_path, create=True) as store:
        for entry in (*records[:-2], *warned, records[-1], refused):
            store.append(entry)
    report = write_report(tmp_path)
    page, markdown = (path.read_text(encoding="utf-8") for path in (report.page, report.markdown))
    for text in (page, markdown):
        assert "with recovery" in text and "sparsegpt with 4xfull" in text
        assert "magnitude with full" in text
    assert "nano-opt magnitude with full 80%" in page
    loaded = load(tmp_path)
    assert "nano-opt magnitude with full 80%" in markdown_page(loaded, compare(loaded.records))
    assert problem_table(compare(loaded.records)).rows[0][1] == "sparsegpt with full"
    from rich.console import Console

    console = Console(width=160, file=io.StringIO())
    console.print(terminal_table(loaded.records))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Recover" in shown and "2 min 0 s" in shown
    assert "refused  nano-opt sparsegpt with full 50%+4bit seed 0: grids" in shown


def test_scripts_can_tell_them_apart(records: list[Record]) -> None:
    assert COLUMNS[-1] == "recovery"
    assert {row["recovery"] for row in tidy(records)} == {"", "lora", "4xfull", "full"}
    lines = list(csv_lines(records))
    assert lines[0].endswith(",value,recovery") and any(line.endswith(",4xfull") for line in lines)
