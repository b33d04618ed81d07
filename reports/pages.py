"""The report itself: one self-contained page, its Markdown twin, and the tidy figures as CSV."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.results.files import fault, replace_file
from bench.results.records import now
from reports.comparison import Comparison, Group, asked_of, compare
from reports.figures import error_map, quality_chart
from reports.kernels import kernel_table
from reports.load import Loaded, load
from reports.markdown import markdown_page
from reports.overview import headline, overview
from reports.provenance import cells_table, facts_table
from reports.tables import (
    Table,
    cost_table,
    other_table,
    problem_table,
    quality_table,
    title_of,
)
from reports.tidy_csv import csv_lines
from reports.wording import clean

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Report:
    """The files a report consists of."""

    page: Path
    markdown: Path
    csv: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them, the page first."""
        return (self.page, self.markdown, self.csv)


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification with its caption and the id of its place on the page."""

    name: str
    caption: str
    specification: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What the page shows of one group."""

    name: str
    title: str
    note: str
    tables: tuple[Table, ...]
    other: Table
    charts: tuple[Chart, ...]


def write_report(out: Path, destination: Path | None = None) -> Report:
    """Write index.html, report.md and results.csv of the store in `out` to `destination`, or OUT/report.

    Each file is replaced whole or left as it was. Raises `StoreError` for a store that cannot be read,
    `MachineError` where the files cannot be written.
    """
    loaded = load(Path(out))
    folder = Path(destination) if destination is not None else Path(out) / "report"
    comparison = compare(loaded.records)
    report = Report(folder / "index.html", folder / "report.md", folder / "results.csv")
    texts = {
        report.page: render_page(loaded, comparison),
        report.markdown: markdown_page(loaded, comparison),
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


def render_page(loaded: Loaded, comparison: Comparison) -> str:
    """The page as one HTML text that loads nothing from anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(index, group) for index, group in enumerate(comparison.groups, 1)]
    scripts = []
    if any(section.charts for section in sections):
        scripts = [_bundle(), (TEMPLATES / "charts.js").read_text(encoding="utf-8")]
    return environment.get_template("report.html.j2").render(
        policy=_policy(scripts),
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        scripts=scripts,
        headline=headline(comparison),
        overview=overview(comparison),
        sections=sections,
        kernels=kernel_table(comparison.kernels),
        problems=problem_table(comparison),
        unfinished=len({record.cell for record in comparison.problems}),
        warnings=[
            (f"{record.model} {asked_of(record)} {record.target}", text)
            for record, text in comparison.warnings
        ],
        facts=facts_table(comparison.records),
        cells=cells_table(comparison.records),
        superseded=loaded.superseded,
        damage=loaded.damage,
        made=now()[:16].replace("T", " "),
        clean=clean,
    )


def _section(index: int, group: Group) -> Section:
    charts = []
    quality = quality_chart(group)
    if quality is not None:
        caption = "Perplexity by target and method; the dashed line is the dense model."
        charts.append(Chart(f"chart-{index}-quality", caption, quality))
    errors = error_map(group)
    if errors is not None:
        charts.append(Chart(f"chart-{index}-errors", errors[1], errors[0]))
    tables = tuple(
        table for table in (quality_table(group), cost_table(group)) if len(table.columns) > table.headers
    )
    return Section(
        name=f"group-{index}",
        title=title_of(group),
        note=f"Model revision {clean(group.revision)}." if group.revision else "",
        tables=tables,
        other=other_table(group),
        charts=tuple(charts),
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the installed packages."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    # Inside <script> these three would end or bend the element; in strings the escape means the same.
    return re.sub(r"<(?=/script|script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def _policy(scripts: list[str]) -> str:
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in scripts
    ]
    allowed = " ".join(f"'sha256-{entry}'" for entry in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
