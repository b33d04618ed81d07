"""The report as Markdown: the same words and tables as the page, without its plots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from reports.comparison import Comparison
from reports.contests import Contests, verdict_tables
from reports.guards import markdown_lines as guard_lines
from reports.kernels import KERNEL_NOTE, kernel_tables
from reports.load import Loaded
from reports.memory import markdown_lines as memory_lines
from reports.overview import Finding, headline, overview
from reports.provenance import facts_table
from reports.published import markdown_lines as published_lines
from reports.tables import Table, cost_table, other_table, problem_table, quality_table, title_of
from reports.wording import escape_markdown

_LONGEST: Final = 8000
"""Sentences and cells of ours hold names that were cut already: they are not cut again."""


def _escaped(text: Any) -> str:
    return escape_markdown(text, _LONGEST)


def markdown_table(table: Table) -> Iterator[str]:
    """The lines of one table; figures are aligned right, every cell is escaped."""
    yield "| " + " | ".join(_escaped(column) for column in table.columns) + " |"
    yield (
        "|"
        + "|".join(" --- " if index < table.headers else " ---: " for index in range(len(table.columns)))
        + "|"
    )
    for row in table.rows:
        yield "| " + " | ".join(_escaped(cell) for cell in row) + " |"


def markdown_page(loaded: Loaded, comparison: Comparison, judged: Contests | None = None) -> str:
    """The whole report; `judged` holds the verdicts of the groups that have some."""
    judged = judged or {}
    lines = ["# Pruning comparison", "", _escaped(headline(comparison)), ""]
    for entry in overview(comparison, judged):
        lines += [f"## {_escaped(entry.title)}", "", _escaped(entry.dense), ""]
        lines += [
            f"- At {_escaped(finding.target)}, **{_escaped(finding.leader)}**"
            f"{_escaped(finding.text)}{_behind(finding)}"
            for finding in entry.findings
        ]
        lines += [f"- {_escaped(note)}" for note in entry.notes]
        lines.append("")
    for group in comparison.groups:
        verdicts = verdict_tables(judged.get(group.key, ()))
        for table in (quality_table(group), *verdicts, cost_table(group), other_table(group)):
            if table.rows and len(table.columns) > table.headers:
                lines += [
                    f"## {_escaped(table.caption)}: {_escaped(title_of(group))}",
                    "",
                    *markdown_table(table),
                    "",
                    *((" ".join(map(_escaped, table.notes)), "") if table.notes else ()),
                ]
    for table in kernel_tables(comparison.kernels):
        lines += [f"## Kernels: {_escaped(table.caption)}", "", *markdown_table(table), ""]
    if comparison.kernels:
        lines += [_escaped(KERNEL_NOTE), ""]
    lines += memory_lines(comparison.records)
    lines += published_lines(comparison) + guard_lines(comparison.records)
    if comparison.problems:
        lines += ["## Refused and failed", "", *markdown_table(problem_table(comparison)), ""]
    if comparison.warnings:
        lines += ["## Warnings", ""]
        for text, where in comparison.warned():
            lines.append(f"- {escape_markdown(text, 1000)}: {escape_markdown(where, 1000)}")
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
    return "".join(f" {_escaped(text)}" for text in said if text)
