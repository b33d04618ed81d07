"""The tidy figures as CSV that no spreadsheet takes for formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from bench.results.records import Record
from bench.results.rows import COLUMNS, tidy
from reports.load import current

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_lines(records: Iterable[Record]) -> Iterator[str]:
    """The tidy rows as CSV lines without their line ends: the columns' names, then one line per figure.

    Numbers stand as Python writes them (`nan`, `inf`), missing ones as nothing. Text that a spreadsheet
    would run as a formula, that is, text that begins with `=`, `+`, `-`, `@` or white space control, gets a
    leading apostrophe; line breaks inside a name are written as `\\n`, so that a row is always one line.
    """
    yield _csv_line(COLUMNS)
    for row in tidy(current(records)):
        yield _csv_line([_csv_cell(row[column]) for column in COLUMNS])


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    guarded = f"'{value}" if value.startswith(_FORMULA) else value
    return guarded.replace("\r", "\\r").replace("\n", "\\n")


def _csv_line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
