"""Picking published figures by what a user names: papers, models, methods, targets, metrics, tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bench.published.figures import Figure, figures, source_of, sources
from methods.errors import UserError, nearest, shown

__all__ = ["Filters", "select"]


@dataclass(frozen=True, slots=True)
class Filters:
    """Words to pick by, each a list of alternatives (globs allowed); nothing picks all.

    ``every``: figures that are ablations, copies or run again by others, too. ``flag``: what errors call ``source``.
    """

    source: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    sparsity: tuple[str, ...] = ()
    pattern: tuple[str, ...] = ()
    metric: tuple[str, ...] = ()
    table: tuple[str, ...] = ()
    every: bool = False
    flag: str = "--source"


def select(filters: Filters, rows: Sequence[Figure] | None = None) -> list[Figure]:
    """The figures that fit, in the file's order; none where each word is known but no figure has them all.

    Raises UserError for a word that no figure has, naming the nearest.
    """
    rows = figures() if rows is None else rows
    kept = [row for row in rows if filters.every or row.primary]
    for option, words, spell in (
        (filters.flag, filters.source, _source),
        ("--model", filters.model, _model),
        ("--method", filters.method, lambda row: (row.method,)),
        ("--pattern", filters.pattern, lambda row: (row.pattern or "not stated",)),
        ("--metric", filters.metric, _metric),
        ("--table", filters.table, lambda row: tuple(row.table.split(" / "))),
    ):
        if words:
            hits = _hits(option, words, rows, spell)
            kept = [row for row in kept if row in hits]
    if filters.sparsity:
        shares = {_share(word) for word in filters.sparsity}
        kept = [row for row in kept if row.sparsity in shares]
    return kept


def _source(row: Figure) -> tuple[str, ...]:
    return (source_of(row).name, row.source)


def _model(row: Figure) -> tuple[str, ...]:
    """As printed, and as bench's registry spells it: bloom-1.1b is bloom-1b1."""
    return (row.model, re.sub(r"^(bloom-\d)\.(\d)b$", r"\1b\2", row.model))


def _metric(row: Figure) -> tuple[str, ...]:
    return (row.metric, *(("perplexity",) if row.metric.startswith("ppl_") else ()))


def _hits(
    option: str, words: Iterable[str], rows: Sequence[Figure], spell: Callable[[Figure], tuple[str, ...]]
) -> set[Figure]:
    spelled: dict[str, list[Figure]] = {}
    for row in rows:
        for text in spell(row):
            spelled.setdefault(text.lower(), []).append(row)
    found: set[Figure] = set()
    for word in words:
        fit = _fitting(option, word.strip().lower(), spelled)
        if not fit:
            known = {source.name for source in sources().values()} if spell is _source else set(spelled)
            raise UserError(
                f"{option} '{shown(word)}' is in no published figure{nearest(word, known)}"
                + ("" if len(known) > 30 else f"; published are: {', '.join(sorted(known))}")
            )
        found.update(row for text in fit for row in spelled[text])
    return found


def _fitting(option: str, word: str, spelled: Iterable[str]) -> list[str]:
    """Spellings that a word names; a table's also by its label without what stands in brackets, or ``table1``."""
    fit = [text for text in spelled if fnmatchcase(text, word)]
    if fit or option != "--table":
        return fit
    return [text for text in spelled if word.replace(" ", "") == text.split(" (")[0].replace(" ", "")]


def _share(word: str) -> float:
    percent = word.strip().endswith("%")
    try:
        share = float(word.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"--sparsity '{shown(word)}' is no share; use 0 <= sparsity < 1, such as 0.5")
    return round(share, 6)
