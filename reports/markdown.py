"""The report as Markdown: the same words and tables as the page, without its plots."""

from __future__ import annotations

from collections.abc import Iterator

from reports.comparison import Comparison, asked_of
from reports.guards import markdown_lines as guard_lines
from reports.kernels import kernel_table
from reports.load import Loaded
from reports.overview import headline, overview
from reports.provenance import facts_table
from reports.published import markdown_lines as published_lines
from reports.tables import Table, cost_table, other_table, problem_table, quality_table, title_of
from reports.wording import clean, escape_markdown


def markdown_table(table: Table) -> Iterator[str]:
    """The lines of one table; figures are aligned right, every cell is escaped."""
    yield "| " + " | ".join(escape_markdown(column) for column in table.columns) + " |"
    yield (
        "|"
        + "|".join(" --- " if index < table.headers else " ---: " for index in range(len(table.columns)))
        + "|"
    )
    for row in table.rows:
        yield "| " + " | ".join(escape_markdown(cell) for cell in row) + " |"


def markdown_page(loaded: Loaded, comparison: Comparison) -> str:
    """The whole report."""
    lines = ["# Pruning comparison", "", escape_markdown(headline(comparison)), ""]
    for entry in overview(comparison):
        lines += [f"## {escape_markdown(entry.title)}", "", escape_markdown(entry.dense), ""]
        lines += [
            f"- At {escape_markdown(finding.target)}, **{escape_markdown(finding.leader)}**"
            f"{escape_markdown(finding.text)}"
            for finding in entry.findings
        ]
        lines += [f"- {escape_markdown(note)}" for note in entry.notes]
        lines.append("")
    for group in comparison.groups:
        for table in (quality_table(group), cost_table(group), other_table(group)):
            if table.rows and len(table.columns) > table.headers:
                lines += [
                    f"## {table.caption}: {escape_markdown(title_of(group))}",
                    "",
                    *markdown_table(table),
                    "",
                    *((" ".join(map(escape_markdown, table.notes)), "") if table.notes else ()),
                ]
    kernels = kernel_table(comparison.kernels)
    if kernels.rows:
        lines += ["## Kernels", "", *markdown_table(kernels), ""]
        lines += [*map(escape_markdown, kernels.notes), ""]
    lines += published_lines(comparison) + guard_lines(comparison.records)
    if comparison.problems:
        lines += ["## Refused and failed", "", *markdown_table(problem_table(comparison)), ""]
    if comparison.warnings:
        lines += ["## Warnings", ""]
        for record, text in comparison.warnings:
            where = f"{record.model} {asked_of(record)} {record.target}"
            lines.append(f"- {escape_markdown(where)}: {escape_markdown(clean(text, 1000))}")
        lines.append("")
    if loaded.damage:
        lines += [
            "## Damaged pieces of the store",
            "",
            *(f"- {escape_markdown(piece)}" for piece in loaded.damage),
            "",
        ]
    lines += ["## Provenance", "", *markdown_table(facts_table(comparison.records)), ""]
    if loaded.superseded:
        lines += [
            f"{loaded.superseded:,} older records of the same subjects stay in the store and are not shown.",
            "",
        ]
    return "\n".join(lines)
