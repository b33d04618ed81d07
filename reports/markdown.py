"""The report as Markdown: the same words and tables as the page, without its plots."""

from __future__ import annotations

from collections.abc import Iterator

from reports.comparison import Comparison, asked_of
from reports.contests import Contests, verdict_table
from reports.kernels import KERNEL_NOTE, kernel_tables
from reports.load import Loaded
from reports.overview import Finding, headline, overview
from reports.provenance import facts_table
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


def markdown_page(loaded: Loaded, comparison: Comparison, judged: Contests | None = None) -> str:
    """The whole report; `judged` holds the verdicts of the groups that have some."""
    judged = judged or {}
    lines = ["# Pruning comparison", "", escape_markdown(headline(comparison)), ""]
    for entry in overview(comparison, judged):
        lines += [f"## {escape_markdown(entry.title)}", "", escape_markdown(entry.dense), ""]
        lines += [
            f"- At {escape_markdown(finding.target)}, **{escape_markdown(finding.leader)}**"
            f"{escape_markdown(finding.text)}{_behind(finding)}"
            for finding in entry.findings
        ]
        lines += [f"- {escape_markdown(note)}" for note in entry.notes]
        lines.append("")
    for group in comparison.groups:
        verdicts = (verdict_table(contest) for contest in judged.get(group.key, ()) if contest.pairs)
        for table in (quality_table(group), *verdicts, cost_table(group), other_table(group)):
            if table.rows and len(table.columns) > table.headers:
                lines += [
                    f"## {escape_markdown(table.caption)}: {escape_markdown(title_of(group))}",
                    "",
                    *markdown_table(table),
                    "",
                    *((" ".join(map(escape_markdown, table.notes)), "") if table.notes else ()),
                ]
    for table in kernel_tables(comparison.kernels):
        lines += [f"## Kernels: {escape_markdown(table.caption)}", "", *markdown_table(table), ""]
    if comparison.kernels:
        lines += [escape_markdown(KERNEL_NOTE), ""]
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
    facts = facts_table((*comparison.records, *comparison.kernels))
    lines += ["## Provenance", "", *markdown_table(facts), ""]
    if loaded.superseded:
        lines += [
            f"{loaded.superseded:,} older records of the same subjects stay in the store and are not shown.",
            "",
        ]
    return "\n".join(lines)


def _behind(finding: Finding) -> str:
    """How sure a finding is and what it costs, as sentences behind it."""
    said = [finding.sure, f"Cost: {finding.cost}." if finding.cost else ""]
    return "".join(f" {escape_markdown(text)}" for text in said if text)
