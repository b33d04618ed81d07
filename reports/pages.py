"""The report itself: a small site of self-contained pages, its Markdown twin, and the tidy figures as CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.results.files import fault, replace_file
from reports.comparison import Comparison, asked_of, compare
from reports.contests import Contests, contests
from reports.figures.speed import speedup_charts
from reports.figures.style import Chart
from reports.kernels import KERNEL_NOTE, kernel_tables
from reports.layout import Explorer, Page, render
from reports.load import Loaded, load
from reports.markdown import markdown_page
from reports.overview import headline, overview
from reports.provenance import cells_table, facts_table
from reports.results_table import FILTERS, results_table
from reports.sections import section
from reports.tables import problem_table
from reports.tidy_csv import csv_lines
from reports.verdicts import Values

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
class Slot:
    """A section that another module adds to the overview page: `template` sees it as `slot`."""

    name: str
    title: str
    template: str
    context: dict[str, Any] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()


SLOTS: list[Callable[[Comparison], Slot | None]] = []
"""Makers of further sections, in order; one that has nothing to show gives None."""


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
    loaded = load(Path(out))
    folder = Path(destination) if destination is not None else Path(out) / "report"
    comparison = compare(loaded.records)
    judged = contests(comparison.groups[:MOST_SECTIONS], Values(Path(out)))
    names = ("index.html", "results.html", "provenance.html", "report.md", "results.csv")
    report = Report(*(folder / name for name in names))
    texts = {
        report.page: render_overview(loaded, comparison, judged),
        report.results: render_results(comparison),
        report.provenance: render_provenance(loaded, comparison),
        report.markdown: markdown_page(loaded, comparison, judged),
        report.csv: "".join(f"{line}\n" for line in csv_lines(loaded.records)),
    }
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            replace_file(path, text.encode("utf-8"))
    except OSError as error:
        raise fault("write", path, error) from error
    return report


def render_overview(loaded: Loaded, comparison: Comparison, judged: Contests) -> str:
    """The first page: what to take in words, then every group with its tables, verdicts and plots."""
    shown = comparison.groups[:MOST_SECTIONS]
    sections = [
        section(index, group, judged.get(group.key, ()), comparison.groups)
        for index, group in enumerate(shown, 1)
    ]
    kernels = kernel_tables(comparison.kernels)
    speedups = [
        Chart(f"kernels-{number}", caption, specification)
        for number, (_, specification, caption) in enumerate(speedup_charts(comparison.kernels), 1)
    ]
    slots = [slot for make in SLOTS if (slot := make(comparison)) is not None]
    charts = [chart for entry in sections for chart in entry.drawn]
    return render(
        "overview.html.j2",
        title=TITLE,
        charts=[*charts, *speedups, *(chart for slot in slots for chart in slot.charts)],
        tables=bool(sections or kernels),
        page="index.html",
        pages=PAGES,
        headline=headline(comparison),
        overview=overview(comparison, judged)[:MOST_SECTIONS],
        more_groups=len(comparison.groups) - len(shown),
        sections=sections,
        slots=slots,
        kernels=kernels[:MOST_KERNEL_TABLES],
        more_kernels=max(0, len(kernels) - MOST_KERNEL_TABLES),
        kernel_note=KERNEL_NOTE,
        speedups=speedups,
        problems=problem_table(comparison),
        unfinished=len({record.cell for record in comparison.problems}),
        warnings=[
            (f"{record.model} {asked_of(record)} {record.target}", text)
            for record, text in comparison.warnings
        ],
        damage=loaded.damage,
    )


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
