"""Ours against published: figures of the same protocol with their difference, the others with what differs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from bench.published.figures import source_of
from bench.published.match import Match, Mismatch, Ours, known_model, ours_of
from bench.published.match import compare as match
from reports.comparison import Comparison
from reports.tables import Table
from reports.wording import clean, escape_markdown, figure

__all__ = ["Beside", "beside", "markdown_lines", "published_tables"]

_SAME = ("Model", "Method", "Target", "Figure", "Ours", "Published", "Difference", "Source", "To know")
_NEAR = ("Model", "Method", "Target", "Figure", "Ours", "Published", "Source", "Why they are not compared")


@dataclass(frozen=True)
class Beside:
    """What published figures say on the models of a comparison; both empty where nothing is published on them."""

    matches: tuple[Match, ...]
    mismatches: tuple[Mismatch, ...]


def beside(comparison: Comparison, *, lines: Collection[int] | None = None) -> Beside:
    """Every row's figures against the published ones (those on ``lines`` of the file only, where given)."""
    matches: dict[tuple[int, str, float], Match] = {}
    mismatches: dict[tuple[int, str, float], Mismatch] = {}
    for ours, name in _ours(comparison):
        same, near = match(ours)
        for found in same:
            if lines is None or found.figure.line in lines:
                matches[found.figure.line, name, ours.value] = found
        for other in near:
            if lines is None or other.figure.line in lines:
                mismatches[other.figure.line, name, ours.value] = other
    return Beside(tuple(matches.values()), tuple(mismatches.values()))


def _ours(comparison: Comparison) -> Iterator[tuple[Ours, str]]:
    for group in comparison.groups:
        if not known_model(group.model):
            continue
        for row in group.rows:
            means = {key: summary.mean for key, summary in row.figures.items()}
            for ours in ours_of(row.records, means):
                yield ours, row.name


def published_tables(found: Beside) -> tuple[Table, ...]:
    """At most two tables: the same protocol with differences, then what is listed and never subtracted."""
    tables = []
    if found.matches:
        rows: list[tuple[str, ...]] = [
            (
                *_named(entry.ours),
                _value(entry.ours.value, entry.ours),
                clean(entry.figure.printed),
                "–" if entry.difference is None else f"{entry.difference:+.4g}",
                f"{source_of(entry.figure).name}, {entry.figure.table}",
                "; ".join(entry.notes) or "–",
            )
            for entry in found.matches
        ]
        tables.append(_table("Ours against published, same protocol", _SAME, rows))
    if found.mismatches:
        rows = [
            (
                *_named(entry.ours),
                _value(entry.ours.value, entry.ours),
                clean(entry.figure.printed),
                f"{source_of(entry.figure).name}, {entry.figure.table}",
                "; ".join(clean(reason) for reason in entry.reasons),
            )
            for entry in found.mismatches
        ]
        tables.append(_table("Published under other protocols, not compared", _NEAR, rows))
    return tuple(tables)


def _named(ours: Ours) -> tuple[str, str, str, str]:
    spelled = {"perplexity": f"perplexity {ours.on}", "parameters": "parameters"}
    return (
        clean(ours.model),
        clean(ours.method),
        clean(ours.target),
        clean(spelled.get(ours.measure, f"{ours.accuracy} {ours.on}, %")),
    )


def _value(value: float, ours: Ours) -> str:
    return figure(100 * value if ours.measure == "zeroshot" else value, "1")


def _table(caption: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    return Table(caption=caption, columns=columns, rows=tuple(rows), headers=4, words=2)


def markdown_lines(comparison: Comparison) -> list[str]:
    """The section in Markdown; nothing where nothing is published on the models."""
    from reports.markdown import markdown_table

    lines: list[str] = []
    for table in published_tables(beside(comparison)):
        lines += [f"## {escape_markdown(table.caption)}", "", *markdown_table(table), ""]
    return lines
