"""Kernel timings as `bench kernels` measured them: a headline, tables, a grid for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bench.results.records import Record
from reports.comparison import KERNEL_PHASE
from reports.tables import Shown, Table
from reports.wording import MISSING, clean, figure

if TYPE_CHECKING:
    from rich.table import Table as Grid

__all__ = [
    "KERNEL_NOTE",
    "kernel_headline",
    "kernel_rows",
    "kernel_tables",
    "number_of",
    "terminal_kernels",
    "zeros_of",
]

_COLUMNS: Final = (
    *("Shape", "Zeros", "Type", "Format", "Batch", "Threads"),
    *(
        "Product",
        "Half lie between",
        "To best dense",
        "To own dense",
        "Of the roofline",
        "Set-up",
        "Error",
        "Verdict",
    ),
)
_CAPTIONED: Final = tuple(_COLUMNS.index(name) for name in ("Shape", "Type", "Threads"))
"""What the caption of a table says for all its rows."""
KERNEL_NOTE: Final = (
    "Products of random matrices, timed in turns with the best dense product (F.linear, W @ X.T, ours) in one process; "
    "faster means that the quartiles of their times do not overlap. The roofline is the least time that bytes and "
    "operations allow at the bandwidth and rate measured in the same run. Error: largest, of the largest output."
)


def kernel_rows(records: Iterable[Record]) -> list[Mapping[str, Any]]:
    """The rows that finished kernel records hold, by shape, zeros, type, batch and format."""
    found = []
    for record in records:
        row = record.provenance.get("row")
        if record.phase == KERNEL_PHASE and record.status == "done" and isinstance(row, dict):
            found.append(row)
    return sorted(found, key=_order)


def kernel_headline(records: Iterable[Record]) -> str:
    """How many products were timed, and how they stand to the best dense one, in one sentence."""
    rows = kernel_rows(records)
    verdicts = Counter(clean(row.get("verdict", "not judged"), 20) for row in rows)
    shapes = len({str(row.get("shape")) for row in rows})
    ends = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
    return f"{len(rows):,} kernel timings of {shapes:,} {'shape' if shapes == 1 else 'shapes'}: {ends}."


def kernel_tables(records: Iterable[Record]) -> list[Table]:
    """All kernel rows as text, a table for every shape, weight type and number of threads."""
    parts: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in kernel_rows(records):
        cells = _cells(row)
        parts.setdefault(tuple(cells[place] for place in _CAPTIONED), []).append(
            tuple(cell for place, cell in enumerate(cells) if place not in _CAPTIONED)
        )
    columns = tuple(column for place, column in enumerate(_COLUMNS) if place not in _CAPTIONED)
    return [
        Table(
            f"{shape}, {dtype}, {threads} {'thread' if threads == '1' else 'threads'}",
            columns,
            tuple(rows),
            headers=3,
            words=1,
        )
        for (shape, dtype, threads), rows in parts.items()
    ]


def terminal_kernels(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """The rows for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(_COLUMNS):
        named = index < 4 or column == "Verdict"
        grid.add_column(column, justify="left" if named else "right", overflow="fold")
    for row in sorted(rows, key=_order):
        grid.add_row(
            *(Text(cell) for cell in _cells(row)), style="bold" if row.get("verdict") == "wrong" else ""
        )
    return grid


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    rows, _, columns = str(row.get("shape")).partition("x")
    plain = all(word.isascii() and word.isdigit() and len(word) < 10 for word in (rows, columns))
    size = (int(rows), int(columns)) if plain else (0, 0)
    batch = row.get("batch")
    return (
        *size,
        *(str(row.get(name)) for name in ("dtype", "pattern", "sparsity")),
        batch if isinstance(batch, int) else 0,
        str(row.get("format")),
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    lower, upper = (figure(number_of(row, name), "s") for name in ("q25_s", "q75_s"))
    return (
        clean(row.get("shape", MISSING), 30),
        zeros_of(row),
        *(clean(row.get(name, MISSING), 20) for name in ("dtype", "format", "batch", "threads")),
        Shown(figure(number_of(row, "median_s"), "s"), number_of(row, "median_s")),
        Shown(f"{lower} to {upper}", number_of(row, "q25_s")),
        *(
            Shown(_times(number_of(row, name)), number_of(row, name))
            for name in ("speedup_vs_dense", "speedup_vs_own_dense")
        ),
        Shown(
            figure(number_of(row, "roofline_fraction"), "1", "sparsity", share_digits=0),
            number_of(row, "roofline_fraction"),
        ),
        Shown(figure(number_of(row, "setup_s"), "s"), number_of(row, "setup_s")),
        Shown(_small(number_of(row, "max_rel_error")), number_of(row, "max_rel_error")),
        clean(row.get("verdict", MISSING), 20),
    )


def zeros_of(row: Mapping[str, Any]) -> str:
    """The zeros of a row: its N:M pattern, or the share asked for."""
    pattern = clean(row.get("pattern", MISSING), 20)
    share = number_of(row, "sparsity")
    return pattern if pattern != "unstructured" or share is None else f"{100 * share:.6g} %"


def number_of(row: Mapping[str, Any], name: str) -> float | None:
    """A field that should be a number; None where it is none."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f} x"


def _small(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1e}"
