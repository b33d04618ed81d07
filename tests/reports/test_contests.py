"""Methods at one target against each other: the sentences and tables that the verdicts give, and files beside the site."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sample_records import cell, record

from bench.cli.report import command
from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import save_values
from reports.comparison import compare
from reports.contests import ALL_PAIRS, contests, verdict_tables
from reports.figures.pareto import front
from reports.overview import headline, overview
from reports.verdicts import DIVERGENCE, PERPLEXITY, Values

WINDOWS = 64
STUDY = Path(__file__).parents[2] / "studies" / "kernels"


def three_seeds(
    out: Path,
    losses: dict[str, tuple[float, float]],
    target: str = "50%",
    *,
    windows: int = WINDOWS,
    drawn: dict[str, dict[int, float]] | None = None,
) -> list[Record]:
    """Cells with three seeds (one where none is drawn); losses and divergences about the two means given.

    `drawn` gives a method seeds of its own, each with what it adds to every window's loss.
    """
    rng = np.random.default_rng(11)
    text = rng.normal(3.0, 0.5, windows)
    found = cell("nano-opt", "dense", "0%")
    for method, (loss, divergence) in losses.items():
        seeds = (drawn or {}).get(method, dict.fromkeys((0,) if method == "magnitude" else (0, 1, 2), 0.0))
        for seed, added in seeds.items():
            noise = rng.normal(0, 0.02, (2, windows))
            arrays = {"nll": text + loss + added + noise[0], "kl_to_dense": divergence + noise[1]}
            prune, evaluation = cell("nano-opt", method, target, seed=seed)
            metrics = tuple(
                metric.model_copy(update={"value": float(np.exp(arrays["nll"].mean()))})
                if metric.name == "perplexity"
                else metric
                for metric in evaluation.metrics
            )
            found += [
                prune,
                evaluation.model_copy(update={"values": save_values(out, arrays), "metrics": metrics}),
            ]
    return found


def test_the_first_screen_says_what_to_take_how_sure_and_at_what_cost(tmp_path: Path) -> None:
    losses = {"sparsegpt": (0.1, 0.30), "wanda": (0.1, 0.25), "ria": (0.2, 0.4), "magnitude": (0.6, 0.8)}
    comparison = compare(three_seeds(tmp_path, losses))
    judged = contests(comparison.groups, Values(tmp_path))
    (contest,) = next(iter(judged.values()))
    assert len(contest.pairs) == 6 and contest.measures == (PERPLEXITY, DIVERGENCE)
    (finding,) = overview(comparison, judged)[0].findings
    leader, level = [row.method for row in contest.rows[:2]]
    assert {leader, level} == {"sparsegpt", "wanda"} and finding.leader == leader
    assert finding.text.startswith(" has the lowest perplexity, ")
    assert finding.sure.startswith(f"{leader} is better than ria (perplexity ratio 0.90")
    assert f"not distinguishable from {level} (perplexity ratio " in finding.sure
    assert "over 64 windows of text and 3 calibration seeds." in finding.sure
    assert (
        f"By KL to dense it is {'worse' if leader == 'sparsegpt' else 'better'} than {level}." in finding.sure
    )
    assert finding.cost == (
        "3.25 s and 400 MB of peak memory to prune; 1.0 M of 1.5 M parameters are not zero; 6 MB stored dense"
    )
    (table,) = verdict_tables([contest])
    assert table.columns == (
        *("A", "B", "Perplexity, A / B", "A, by perplexity"),
        *("KL to dense, A - B, nat/token", "A, by KL to dense"),
    )
    shown = {row[:2]: row for row in table.rows}
    assert shown["ria", "magnitude"][3].startswith("better, p ")
    assert shown[leader, level][3].startswith("not distinguishable, p = ")
    assert any("Holm" in note for note in table.notes)


def test_of_many_methods_the_first_meets_each_other(tmp_path: Path) -> None:
    losses = {f"m{place}": (0.1 * place, 0.1 * place) for place in range(ALL_PAIRS + 2)}
    judged = contests(compare(three_seeds(tmp_path, losses)).groups, Values(tmp_path))
    (contest,) = next(iter(judged.values()))
    assert contest.pairs == tuple((0, place) for place in range(1, ALL_PAIRS + 2))
    turned = contest.verdict(3, 0, PERPLEXITY)
    assert turned is not None and turned.outcome == "worse" and contest.verdict(2, 3, PERPLEXITY) is None
    # The first was chosen by the same figures: its pairs are corrected over all that there are.
    tested = [contest.verdict(0, place, PERPLEXITY) for place in range(1, ALL_PAIRS + 2)]
    found = [
        verdict.difference for verdict in tested if verdict is not None and verdict.difference is not None
    ]
    surest = min(found, key=lambda difference: difference.p)
    assert surest.adjusted == pytest.approx(surest.p * math.comb(ALL_PAIRS + 2, 2))
    assert "over all pairs" in " ".join(verdict_tables([contest])[-1].notes)


def test_notes_state_the_resamples_that_were_drawn(tmp_path: Path) -> None:
    losses = {"sparsegpt": (0.1, 0.1), "magnitude": (0.2, 0.2)}
    judged = contests(compare(three_seeds(tmp_path, losses, windows=2000)).groups, Values(tmp_path))
    notes = " ".join(verdict_tables(next(iter(judged.values())))[-1].notes)
    assert "(999 resamples" in notes and "4,999" not in notes and "over all pairs" not in notes


def test_methods_stand_in_the_order_of_their_mean_losses(tmp_path: Path) -> None:
    """The arithmetic mean of perplexities would put wanda first: one bad seed weighs more there than in the loss."""
    losses = {"sparsegpt": (0.0, 0.1), "wanda": (0.1, 0.1)}
    drawn = {"sparsegpt": {0: -0.6, 1: 0.6}, "wanda": {0: 0.0, 1: 0.0}}
    comparison = compare(three_seeds(tmp_path, losses, drawn=drawn))
    contest = contests(comparison.groups, Values(tmp_path))[comparison.groups[0].key][0]
    assert [row.method for row in contest.rows] == ["sparsegpt", "wanda"]
    verdict = contest.verdict(0, 1, PERPLEXITY)
    assert verdict is not None and verdict.ratio is not None
    first, second = (row.perplexity.mean or 0.0 for row in contest.rows)
    assert first / second == pytest.approx(verdict.ratio[0])
    assert "geometric means" in " ".join(overview(comparison)[0].notes)


def test_the_lowest_mean_is_not_best_where_shared_seeds_say_otherwise(tmp_path: Path) -> None:
    losses = {"sparsegpt": (0.0, 0.1), "ria": (0.1, 0.1), "wanda": (0.5, 0.5)}
    drawn = {"sparsegpt": {0: 0.3, 1: -0.2, 2: -0.2}, "ria": {0: 0.0}, "wanda": {0: 0.3, 1: -0.2, 2: -0.2}}
    comparison = compare(three_seeds(tmp_path, losses, drawn=drawn))
    judged = contests(comparison.groups, Values(tmp_path))
    (finding,) = overview(comparison, judged)[0].findings
    assert finding.leader == "sparsegpt" and "worse than ria" in finding.sure
    assert finding.text.startswith(" has the lowest perplexity,") and "keeps most" not in finding.text
    # Every pair says what its interval covers.
    assert (
        "95 % intervals over 64 windows of text (ria); 64 windows of text and 3 calibration seeds (wanda)."
        in finding.sure
    )


def test_what_cannot_be_judged_says_why(tmp_path: Path) -> None:
    comparison = compare(
        [
            *cell("nano-opt", "dense", "0%"),
            *cell("nano-opt", "sparsegpt", "50%"),
            *cell("nano-opt", "magnitude", "50%"),
        ]
    )
    judged = contests(comparison.groups, Values(tmp_path))
    (table,) = verdict_tables(next(iter(judged.values())))
    assert "not comparable: sparsegpt: values of single windows were not recorded" in table.rows[0][3]
    assert overview(comparison, judged)[0].findings[0].sure == ""


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.5), (2.5, 2.0)]
    assert front(points) == [1, 2, 0]
    assert front([(10.0, 5.0), (20.0, 4.0), (5.0, 6.0)], more_is_better=True) == [1]


def test_kernels_alone_have_a_headline_of_their_own() -> None:
    from reports.load import load

    comparison = compare(load(STUDY).records)
    assert headline(comparison) == "42 kernel timings of 2 shapes: 15 faster, 27 not faster."


def test_parquet_and_figures_are_written(tmp_path: Path) -> None:
    with Store(tmp_path, create=True) as store:
        for entry in three_seeds(tmp_path, {"sparsegpt": (0.1, 0.3), "magnitude": (0.6, 0.8)}):
            store.append(entry)
        store.append(record(status="failed", reason="=1+1", subject="failed", method="=cmd|' /C calc'!A0"))
    run = CliRunner().invoke(
        command, ["--out", str(tmp_path), "--format", "parquet", "--figures", "svg, PNG"]
    )
    assert run.exit_code == 0, run.output
    frame = pd.read_parquet(tmp_path / "report" / "results.parquet")
    assert list(frame.columns)[:3] == ["cell", "status", "model"] and frame["value"].dtype == "float64"
    assert frame.loc[frame["metric"] == "sparsity", "value"].tolist() == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert frame["seed"].isna().any() and "=cmd|' /C calc'!A0" in set(frame["method"])
    figures = sorted((tmp_path / "report" / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"} and len(figures) >= 6
    for path in figures:
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else start.startswith(b"<svg")
        assert path.suffix == ".png" or "currentColor" not in path.read_text()
    refused = CliRunner().invoke(command, ["--out", str(tmp_path), "--figures", "gif"])
    assert refused.exit_code == 2 and "'gif' is no form of figure; give png, svg, pdf" in refused.output
    assert isinstance(frame["seed"].dtype, pd.Int64Dtype)


def test_markdown_holds_the_verdicts(tmp_path: Path) -> None:
    with Store(tmp_path, create=True) as store:
        for entry in three_seeds(tmp_path, {"sparsegpt": (0.1, 0.3), "magnitude": (0.6, 0.8)}):
            store.append(entry)
    output = CliRunner().invoke(command, ["--out", str(tmp_path), "--format", "markdown"]).output
    assert "## Pair by pair at 50%" in output and "better, p &lt; 0.001" in output
    assert "sparsegpt is better than magnitude" in output and "Cost: 3.25 s" in output
    assert "several calibration seeds, they cover other seeds too." in output, "a note is cut short"
