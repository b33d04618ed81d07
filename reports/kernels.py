"""Kernel timings: one table of rows as `bench kernels` measured them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bench.results.records import Record
from reports.comparison import KERNEL_PHASE
from reports.tables import Table
from reports.wording import MISSING, clean, figure

if TYPE_CHECKING:
    from rich.table import Table as Grid

__all__ = ["kernel_rows", "kernel_table", "terminal_kernels"]

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
_NOTE: Final = (
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


def kernel_table(records: Iterable[Record]) -> Table:
    """All kernel rows as text; empty where there are none."""
    rows = tuple(_cells(row) for row in kernel_rows(records))
    return Table("Kernels", _COLUMNS, rows, headers=6, words=1, notes=(_NOTE,) if rows else ())


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
    pattern = clean(row.get("pattern", MISSING), 20)
    share = _number(row, "sparsity")
    zeros = pattern if pattern != "unstructured" or share is None else f"{100 * share:.6g} %"
    lower, upper = (figure(_number(row, name), "s") for name in ("q25_s", "q75_s"))
    return (
        clean(row.get("shape", MISSING), 30),
        zeros,
        *(clean(row.get(name, MISSING), 20) for name in ("dtype", "format", "batch", "threads")),
        figure(_number(row, "median_s"), "s"),
        f"{lower} to {upper}",
        *(_times(_number(row, name)) for name in ("speedup_vs_dense", "speedup_vs_own_dense")),
        figure(_number(row, "roofline_fraction"), "1", "sparsity"),
        figure(_number(row, "setup_s"), "s"),
        _small(_number(row, "max_rel_error")),
        clean(row.get("verdict", MISSING), 20),
    )


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f} x"


def _small(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1e}"
