"""The report itself: a small site of self-contained pages, its Markdown twin, and the tidy figures as CSV."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reports.comparison import Comparison, compare
from reports.contests import Contests, contests
from reports.figures.memory import memory_charts
from reports.figures.speed import speedup_charts
from reports.figures.style import Chart
from reports.guards import guard_table
from reports.kernels import KERNEL_NOTE, kernel_findings, kernel_tables
from reports.layout import Explorer, Page, render
from reports.load import Loaded, load
from reports.markdown import markdown_page
from reports.memory import memory_table
from reports.overview import headline, overview
from reports.provenance import cells_table, facts_table
from reports.published import beside, published_tables
from reports.results_table import FILTERS, results_table
from reports.sections import section
from reports.tables import problem_table
from reports.tidy_csv import csv_lines
from reports.verdicts import Values
from reports.writing import write_texts

TITLE: Final = "Pruning comparison"
PAGES: Final = (
    Page("index.html", "Overview"),
    Page("results.html", "All results"),
    Page("provenance.html", "Provenance"),
)
MOST_SECTIONS: Final = 12
"""Groups shown whole, with plots and verdicts, on the overview page."""
MOST_KERNEL_TABLES: Final = 24


@dataclass(frozen=True)
class Report:
    """The files a report consists of."""

    page: Path
    results: Path
    provenance: Path
    markdown: Path
    csv: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them, the page first."""
        return (self.page, self.results, self.provenance, self.markdown, self.csv)


def write_report(out: Path, destination: Path | None = None) -> Report:
    """Write three linked pages, report.md and results.csv of the store in `out` to `destination`, or OUT/report.

    Each file is replaced whole or left as it was. Raises `StoreError` for a store that cannot be read,
    `MachineError` where the files cannot be written.
    """
    # Records are no garbage: walking a large store for cycles, over and over, would take half of the time.
    gc.disable()
    try:
        loaded = load(Path(out))
        gc.freeze()
        gc.enable()
        return _written(Path(out), loaded, destination)
    finally:
        gc.enable()
        gc.unfreeze()


def _written(out: Path, loaded: Loaded, destination: Path | None) -> Report:
    folder = Path(destination) if destination is not None else out / "report"
    comparison = compare(loaded.records)
    judged = contests(comparison.groups[:MOST_SECTIONS], Values(out))
    names = ("index.html", "results.html", "provenance.html", "report.md", "results.csv")
    report = Report(*(folder / name for name in names))
    texts = {
        report.page: render_overview(loaded, comparison, judged),
        report.results: render_results(comparison),
        report.provenance: render_provenance(loaded, comparison),
        report.markdown: markdown_page(loaded, comparison, judged),
        report.csv: "".join(f"{line}\n" for line in csv_lines(loaded.records)),
    }
    write_texts(folder, texts)
    return report


def render_overview(loaded: Loaded, comparison: Comparison, judged: Contests | None = None) -> str:
    """The first page: what to take in words, then every group with its tables, verdicts and plots."""
    judged = judged or {}
    shown = comparison.groups[:MOST_SECTIONS]
    sections = [
        section(index, group, judged.get(group.key, ()), comparison.groups)
        for index, group in enumerate(shown, 1)
    ]
    kernels = kernel_tables(comparison.kernels)
    curves = speedups(comparison)
    peaks = memory_charts(comparison.records)
    charts = [chart for entry in sections for chart in entry.drawn]
    return render(
        "overview.html.j2",
        title=TITLE,
        charts=[*charts, *curves, *peaks],
        tables=bool(sections or kernels),
        page="index.html",
        pages=PAGES,
        headline=headline(comparison),
        overview=overview(comparison, judged)[:MOST_SECTIONS],
        more_groups=len(comparison.groups) - len(shown),
        sections=sections,
        published=published_tables(beside(comparison)),
        alarms=guard_table(comparison.records),
        kernels=kernels[:MOST_KERNEL_TABLES],
        more_kernels=max(0, len(kernels) - MOST_KERNEL_TABLES),
        kernel_note=KERNEL_NOTE,
        kernel_findings=kernel_findings(comparison.kernels),
        speedups=curves,
        memory=memory_table(comparison.records),
        memory_charts=peaks,
        problems=problem_table(comparison),
        unfinished=len({record.cell for record in comparison.problems}),
        warnings=comparison.warned(),
        damage=loaded.damage,
    )


def speedups(comparison: Comparison) -> list[Chart]:
    """The speed-up curves of single products, as named plots."""
    return [
        Chart(f"kernels-{number}", caption, specification)
        for number, (_, specification, caption) in enumerate(speedup_charts(comparison.kernels), 1)
    ]


def render_results(comparison: Comparison) -> str:
    """Every row of every group in one table to sort and filter."""
    return render(
        "results.html.j2",
        title=f"All results · {TITLE}",
        tables=True,
        page="results.html",
        pages=PAGES,
        results=Explorer("results", results_table(comparison.groups), FILTERS),
    )


def render_provenance(loaded: Loaded, comparison: Comparison) -> str:
    """Where the figures come from: shared facts, and every recorded phase with the command that it came from."""
    records = (*comparison.records, *comparison.kernels)
    return render(
        "provenance.html.j2",
        title=f"Provenance · {TITLE}",
        tables=True,
        page="provenance.html",
        pages=PAGES,
        facts=facts_table(records),
        phases=Explorer("phases", cells_table(records), ("Model", "Method", "Target", "Phase", "Outcome")),
        superseded=loaded.superseded,
    )
