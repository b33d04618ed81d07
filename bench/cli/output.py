"""Rich consoles and words for figures, shared by the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["bytes_text", "console", "counted", "duration_text", "print_json", "print_table"]

_PIPE_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """A console that colours on a terminal only; piped, its lines are wide, so that no table breaks."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        no_color=None if terminal else True,
        width=None if terminal else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output."""
    click.echo(json.dumps(value, ensure_ascii=True, allow_nan=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A plain table on standard output; numbers and sizes are passed as text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = console()
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD if screen.is_terminal else box.ASCII2
    )
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    screen.print(table)


def bytes_text(size: float | None) -> str:
    """``1.5 GB``; a dash for none."""
    from bench.models.cache import readable_size

    return readable_size(int(size)) if size else "-"


def duration_text(seconds: float | None) -> str:
    """``42 s``, ``3 min``, ``2.5 h``; a dash for none."""
    if seconds is None:
        return "-"
    if seconds < 99.5:
        return f"{max(seconds, 0.1):.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} d"


def counted(count: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
