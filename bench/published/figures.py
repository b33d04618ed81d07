"""The published figures as typed values: every row of the packaged table, its source, and what to beware of."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Final

from methods.errors import MachineError

__all__ = [
    "COLUMNS",
    "Caveat",
    "Figure",
    "Source",
    "caveats",
    "caveats_of",
    "figures",
    "parse",
    "source_of",
    "sources",
]

COLUMNS: Final = (
    *("source", "table", "model", "method", "sparsity", "pattern", "wbits", "calib"),
    *("metric", "value", "where_found", "seqlen", "primary", "note"),
)
_FOLDER: Final = Path(__file__).parent
_IDENTITY: Final = ("source", "model", "method", "sparsity", "pattern", "wbits", "calib", "metric")


@dataclass(frozen=True, slots=True)
class Source:
    """A paper or repository: its short name, and what holds for all its figures unless a row says otherwise.

    ``samples`` x ``length``: calibration windows and their tokens, 0 where none are drawn; length ``context`` is that
    of the row's evaluation windows. ``accuracy``: ``acc``, ``acc_norm`` or ``not stated``; ``harness``: what scored
    it; ``suite``: the tasks of its mean. ``code``: ``published`` where recipes follow the published code to the letter.
    ``schedule``: that of `bench run --schedule` by which its code prunes, empty where that is not known.
    """

    id: str
    name: str
    title: str
    samples: int
    length: str
    accuracy: str
    harness: str
    suite: tuple[str, ...]
    code: str
    schedule: str


@dataclass(frozen=True, slots=True)
class Caveat:
    """A warning on the figures that its patterns name. ``kind``: suspect, disagreement, protocol, suite, inferred
    or digitised.
    """

    trap: str
    patterns: tuple[tuple[str, str], ...]
    kind: str
    text: str

    def holds_for(self, row: Figure) -> bool:
        """Whether every pattern fits the row's own text."""
        texts = row.texts
        return all(fnmatchcase(texts[name], pattern) for name, pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. ``cells`` are its texts, as they stand in the file, in the order of ``COLUMNS``; ``line`` is its line.

    ``sparsity`` is None where the source does not state it; ``length`` is the evaluation window in tokens, 0 for the
    model's longest context, None where none applies.
    """

    line: int
    cells: tuple[str, ...]
    sparsity: float | None
    wbits: float
    value: float
    length: int | None
    primary: bool

    @property
    def texts(self) -> dict[str, str]:
        """The row by column name."""
        return dict(zip(COLUMNS, self.cells, strict=True))

    @property
    def source(self) -> str:
        """Id of the source, such as an arXiv number."""
        return self.cells[0]

    @property
    def table(self) -> str:
        """Where in the source it stands, as written in the file."""
        return self.cells[1]

    @property
    def model(self) -> str:
        """The model, by the source's size."""
        return self.cells[2]

    @property
    def method(self) -> str:
        """The method, as the file names it."""
        return self.cells[3]

    @property
    def pattern(self) -> str:
        """``none`` (dense), ``unstructured``, ``slice``, N:M, or N:M on a part of the layers."""
        return self.cells[5]

    @property
    def calibration(self) -> str:
        """The calibration text; ``none``, or ``unspecified``."""
        return self.cells[7]

    @property
    def metric(self) -> str:
        """What was measured, such as ``ppl_wikitext2``."""
        return self.cells[8]

    @property
    def printed(self) -> str:
        """The value with the digits of the source."""
        return self.cells[9]

    @property
    def where_found(self) -> str:
        """Which copy of the source was read."""
        return self.cells[10]

    @property
    def note(self) -> str:
        """What the file says about the row."""
        return self.cells[13]

    @property
    def variants(self) -> dict[str, str]:
        """Settings that the table's label states, as ``{"nsamples": "16"}`` of ``Figure 8 (digitised, nsamples=16)``."""
        found = re.findall(r"(nsamples|percdamp|blocksize|group)=(\([^()]+\)|[^,()]+)", self.table)
        named = {key: value.strip("()") for key, value in found}
        if "128 calib" in self.table:
            named["nsamples"] = "128"
        if "FP32 PCA" in self.table:
            named["pca"] = "FP32"
        if "5 seeds" in self.table:
            named["seeds"] = "5"
        return named

    @property
    def samples(self) -> int | None:
        """Calibration windows; None where no text is drawn or the text itself is not stated."""
        if self.calibration in ("none", "unspecified"):
            return None
        return int(self.variants.get("nsamples", source_of(self).samples))

    @property
    def calibration_length(self) -> int | None:
        """Tokens of a calibration window, 0 for the model's longest context; None as for ``samples``."""
        if self.samples is None:
            return None
        length = source_of(self).length
        return self.length if length == "context" or self.length == 0 else int(length)


def parse(text: str, where: str = "published.csv") -> tuple[Figure, ...]:
    """Rows of a table with the columns ``COLUMNS``, each checked. Raises MachineError naming the line that is wrong."""
    rows = _rows(text, where)
    if tuple(next(rows, (1, []))[1]) != COLUMNS:
        raise _damaged(where, 1, f"has other columns than {','.join(COLUMNS)}")
    found: list[Figure] = []
    seen: dict[tuple[str, ...], int] = {}
    for line, cells in rows:
        if len(cells) != len(COLUMNS):
            raise _damaged(where, line, f"has {len(cells)} cells instead of {len(COLUMNS)}")
        row = _figure(cells, line, where)
        if row.primary:
            key = tuple(row.texts[name] for name in _IDENTITY)
            if key in seen:
                raise _damaged(where, line, f"is primary, and so is line {seen[key]} for the same setting")
            seen[key] = line
        found.append(row)
    return tuple(found)


def _rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of every row."""
    reader = csv.reader(io.StringIO(text))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise _damaged(where, reader.line_num, f"is no CSV ({error})") from None


def _figure(cells: list[str], line: int, where: str) -> Figure:
    texts = dict(zip(COLUMNS, cells, strict=True))
    if any(not texts[name] for name in ("source", "table", "model", "method", "metric", "where_found")):
        raise _damaged(where, line, "lacks its source, table, model, method, metric or where it was found")
    if texts["primary"] not in ("0", "1"):
        raise _damaged(where, line, f"has primary '{texts['primary'][:20]}', which is 0 or 1")
    diverged = texts["value"].lower() == "nan"  # printed so where a method fell apart
    value = math.nan if diverged else _number(texts["value"], "value", where, line)
    sparsity = _number(texts["sparsity"], "sparsity", where, line) if texts["sparsity"] else None
    wbits = _number(texts["wbits"], "wbits", where, line)
    if sparsity is not None and not 0 <= sparsity < 1:
        raise _damaged(where, line, f"has sparsity {sparsity:g}, which is no share")
    seqlen = texts["seqlen"]
    if seqlen not in ("", "max") and not re.fullmatch(r"[1-9][0-9]{0,6}", seqlen):
        raise _damaged(where, line, f"has seqlen '{seqlen[:20]}', which is a number of tokens, max or empty")
    length = None if not seqlen else 0 if seqlen == "max" else int(seqlen)
    return Figure(line, tuple(cells), sparsity, wbits, value, length, texts["primary"] == "1")


def _number(text: str, name: str, where: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _damaged(where, line, f"has {name} '{text[:20]}', which is no number")
    return value


def _damaged(where: str, line: int, what: str) -> MachineError:
    return MachineError(f"the packaged {where} is damaged: line {line} {what}; install prune-bench again")


def _read(name: str) -> str:
    try:
        return (_FOLDER / name).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MachineError(
            f"the packaged {name} cannot be read ({error}); install prune-bench again"
        ) from None


@cache
def figures() -> tuple[Figure, ...]:
    """Every packaged figure, in the order of the file. Raises MachineError where the file is damaged."""
    found = parse(_read("published.csv"))
    known = sources()
    for row in found:
        if row.source not in known:
            raise _damaged("published.csv", row.line, f"names '{row.source[:40]}', which sources.csv lacks")
    return found


@cache
def sources() -> dict[str, Source]:
    """Every source by its id."""
    return {
        row["source"]: Source(
            id=row["source"],
            name=row["name"],
            title=row["title"],
            samples=int(row["samples"]),
            length=row["length"],
            accuracy=row["accuracy"],
            harness=row["harness"],
            suite=tuple(filter(None, row["suite"].split(","))),
            code=row["code"],
            schedule=row["schedule"],
        )
        for row in csv.DictReader(io.StringIO(_read("sources.csv")))
    }


def source_of(row: Figure) -> Source:
    """The source of a figure."""
    return sources()[row.source]


@cache
def caveats() -> tuple[Caveat, ...]:
    """Every warning, in the order of the traps they describe; ``-`` numbers those that go with a kind of row."""
    found = []
    for row in csv.DictReader(io.StringIO(_read("caveats.csv"))):
        patterns = tuple((name, row[name]) for name in COLUMNS if row.get(name, "*") != "*")
        found.append(Caveat(row["trap"], patterns, row["kind"], row["text"]))
    return tuple(found)


def caveats_of(row: Figure) -> tuple[Caveat, ...]:
    """The warnings that hold for a figure."""
    return tuple(caveat for caveat in caveats() if caveat.holds_for(row))
