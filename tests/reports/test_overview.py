"""The words of the overview: who leads, by how much, how sure that is, and what went wrong."""

from __future__ import annotations

import math

import pytest
from sample_records import cell, grid, with_perplexity

from bench.results.records import Metric
from reports.comparison import compare
from reports.overview import headline, overview
from reports.standings import missed_targets, standings
from reports.targets import asked_sparsity


@pytest.mark.parametrize(
    ("target", "share"),
    [
        *(("50%", 0.5), ("2:4", 0.5), ("1:4", 0.75), ("0%", 0.0), ("50%+4bit", 0.5), ("2:4+8bit", 0.5)),
        *(("slice25%", None), ("1:0", None), ("٣%", None), ("50%+bit", None)),
    ],
)
def test_asked_sparsity(target: str, share: float | None) -> None:
    assert asked_sparsity(target) == share


def test_the_overview_names_the_best_and_by_how_much() -> None:
    entry = overview(compare(grid()))[0]
    assert entry.title == "nano-opt · nano/kjv"
    assert entry.dense == "The dense model has perplexity 20.00."
    finding = entry.findings[0]
    assert f"At {finding.target}, {finding.leader}{finding.text}" == (
        "At 50%, sparsegpt keeps most quality: perplexity 23.00 (+15.0 %); then magnitude 32.00 (+60.0 %). "
        "Its increase is 0.25 of magnitude's."
    )
    assert (
        headline(compare(grid()))
        == "17 cells on 5 models with 2 pruning methods: 15 done, 1 refused, 1 failed."
    )


def test_what_is_not_settled_is_said() -> None:
    records = [
        *cell("nano-opt", "dense", "0%"),
        *with_perplexity(cell("nano-opt", "magnitude", "50%"), 23.02),
    ]
    for seed in (0, 1, 2):
        records += cell("nano-opt", "sparsegpt", "50%", seed=seed)
    assert "not settled" in standings(compare(records).groups[0])[0].note
    level = [*cell("nano-opt", "sparsegpt", "50%"), *cell("nano-opt", "magnitude", "50%")]
    level = with_perplexity(level, 23.0)
    text = overview(compare(level))[0].findings[0].text
    assert "level" in text
    assert "Its increase" not in text


@pytest.mark.parametrize(
    ("value", "words"),
    [(math.nan, "no finite perplexity"), (math.inf, "no finite perplexity"), (999.0, "10 times dense")],
)
def test_broken_models_come_last_and_are_called_broken(value: float, words: str) -> None:
    records = [
        *cell("nano-opt", "dense", "0%"),
        *with_perplexity(cell("nano-opt", "sparsegpt", "50%"), value),
        *cell("nano-opt", "magnitude", "50%"),
    ]
    comparison = compare(records)
    assert [row.method for row in comparison.groups[0].rows] == ["dense", "magnitude", "sparsegpt"]
    assert any(words in note for note in overview(comparison)[0].notes)
    assert overview(comparison)[0].findings[0].leader == "magnitude"


def test_a_missed_budget_is_said() -> None:
    records = cell("nano-opt", "magnitude", "70%")
    group = compare(records).groups[0]
    assert [row.target for row in missed_targets(group)] == ["70%"]
    assert any(
        "removed 50.00 % of the prunable weights" in note for note in overview(compare(records))[0].notes
    )
    assert missed_targets(compare(cell("nano-opt", "magnitude", "2:4")).groups[0]) == []


def test_with_layers_the_budget_is_that_of_the_selected_weights() -> None:
    records = cell("nano-opt", "magnitude", "70%")
    for share, missed in ((0.7, []), (0.6, ["70%"])):
        changed = [
            record.model_copy(
                update={"metrics": (*record.metrics, Metric(name="sparsity_selected", unit="1", value=share))}
            )
            if record.phase == "prune"
            else record
            for record in records
        ]
        assert [row.target for row in missed_targets(compare(changed).groups[0])] == missed
        notes = overview(compare(changed))[0].notes
        assert any("removed 60.00 % of the selected weights" in note for note in notes) == bool(missed)
