"""`bench kernels` as a list of problems, each a matrix to multiply by in several formats and batch sizes; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.plan.grammar import nearest, parse_list, parse_pattern, parse_sparsity, shown, unique
from bench.plan.machine import available_threads
from bench.plan.settings import out_folder
from methods.errors import UserError
from methods.target import DENSE, Target

__all__ = [
    "BASELINE",
    "DTYPES",
    "FORMATS",
    "KernelSettings",
    "Needs",
    "Problem",
    "Row",
    "gather",
    "needs",
    "problems",
]

FORMATS: Final = ("bitmap", "nm", "csr", "dense")
BASELINE: Final = "dense"
DTYPES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Types of the stored values, with their bytes; int8 has a float32 scale a row and float32 inputs."""
MOST_BYTES: Final = 1 << 30
"""Dense float32 bytes up to which a registered model's shape is measured unless it is asked for."""
_CACHE = 64 << 20
_BASE = 700_000_000
"""Bytes of Python and torch, and of what ceilings are measured on."""
_MADE = 1e7
"""Weights made, packed, converted and multiplied in float64 a second, roughly."""
_SLOW = 8e9
"""Bytes read a second and thread, roughly."""
_SHAPE = re.compile(r"^(\d{1,7})x(\d{1,7})$")


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """Every option of `bench kernels`, checked."""

    shapes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...] = (1, 4, 16)
    shares: tuple[str, ...] = ("50%",)
    patterns: tuple[str, ...] = ("unstructured",)
    formats: tuple[str, ...] = FORMATS
    named: bool = False
    """Whether the formats were asked for by name; else those that cannot be are left out without a word."""
    dtypes: tuple[str, ...] = ("float32",)
    threads: int = 1
    repeats: int = 7
    out: Path = Path("bench-out")
    force: bool = False
    dry_run: bool = False
    quiet: bool = False
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: a format at a batch size."""

    format: str
    batch: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A matrix [rows, columns] of a type with zeros as ``target`` says; ``refused`` maps formats to why they cannot be."""

    rows: int
    columns: int
    dtype: str
    target: str
    wanted: tuple[Row, ...]
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def shape(self) -> str:
        """``11008x4096``."""
        return f"{self.rows}x{self.columns}"

    @property
    def pattern(self) -> str:
        """``unstructured`` or N:M."""
        return self.target if ":" in self.target else "unstructured"

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return float(Target.parse(self.target).amount)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the matrix with zeros stored."""
        return self.rows * self.columns * DTYPES[self.dtype]

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype} {self.target}"


@dataclass(frozen=True, slots=True)
class Needs:
    """Estimates for one problem: bytes of memory, seconds."""

    memory: int
    seconds: float


def needs(problem: Problem, settings: KernelSettings) -> Needs:
    """What a problem takes, in closed form: its formats in copies beyond the caches, and every round over all of them."""
    size, weights = DTYPES[problem.dtype], problem.rows * problem.columns
    kept = weights * (1 - problem.sparsity)
    packed = kept * size + weights / 8
    copies = max(1.0, _CACHE / packed)
    plain = weights * (4 if problem.dtype == "int8" else size)
    bytes_of = {"bitmap": packed, "nm": packed, "csr": kept * 8, "dense": 0.0}
    held: float = plain + (weights if problem.dtype == "int8" else 0)
    held += sum(bytes_of[name] for name in {row.format for row in problem.wanted})
    # the matrix as it is made, a mask, and two more while it is packed
    memory = int(copies * held + 4 * weights + 2 * plain) + _BASE
    passes = (settings.repeats + 2) * copies
    seconds = weights / _MADE
    for batch in dict.fromkeys(row.batch for row in problem.wanted):
        read = 3 * plain + sum(bytes_of[row.format] for row in problem.wanted if row.batch == batch)
        seconds += passes * read * max(1.0, batch / 4) / (_SLOW * settings.threads)
    return Needs(memory, seconds)


def gather(flags: Mapping[str, Any]) -> KernelSettings:
    """Settings from flags (None: not given). Raises UserError, one line, for a value that is none."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "shapes" in given and "models" in given:
        raise UserError(
            "--shapes and --models exclude each other: give the shapes, or the models they are of"
        )
    shapes = (
        tuple(dict.fromkeys(_shape(word) for word in parse_list(given["shapes"], "--shapes")))
        if "shapes" in given
        else _registered(given.get("models"))
    )
    patterns = unique(
        str(parse_pattern(word) or "unstructured")
        for word in parse_list(given.get("pattern", "unstructured"), "--pattern")
    )
    if "sparsity" in given and "unstructured" not in patterns:
        raise UserError(
            f"--sparsity is for unstructured zeros, --pattern {','.join(patterns)} fixes its own; "
            f"leave --sparsity out, or write --pattern unstructured,{','.join(patterns)}"
        )
    shares = unique(str(_share(word)) for word in parse_list(given.get("sparsity", "0.5"), "--sparsity"))
    return KernelSettings(
        shapes=shapes,
        batches=tuple(
            dict.fromkeys(
                _whole(word, "batch", 1, 65_536)
                for word in parse_list(given.get("batch", "1,4,16"), "--batch")
            )
        ),
        shares=shares,
        patterns=patterns,
        formats=_choices(given.get("format", ",".join(FORMATS)), "format", FORMATS),
        named="format" in given,
        dtypes=_choices(given.get("dtype", "float32"), "dtype", tuple(DTYPES)),
        threads=_whole(given["threads"], "threads", 1, 4096) if "threads" in given else available_threads(),
        repeats=_whole(given.get("repeats", 7), "repeats", 3, 10_000),
        out=out_folder(given.get("out", "bench-out")),
        **{name: bool(given.get(name, False)) for name in ("force", "dry_run", "quiet", "as_json")},
    )


def problems(settings: KernelSettings) -> Iterator[Problem]:
    """Every combination asked for, smaller matrices first; formats that it cannot have are refused in it."""
    for rows, columns in sorted(settings.shapes, key=lambda shape: (shape[0] * shape[1], shape)):
        for dtype in settings.dtypes:
            for target in _targets(settings):
                refused = {
                    name: reason
                    for name in settings.formats
                    if (reason := _refusal(name, target, dtype, columns)) is not None
                }
                # N:M packing of zeros anywhere is no question that anybody asked
                silent = {"nm"} if not target.group else set()
                if not settings.named and "csr" in refused:
                    silent.add("csr")
                wanted = tuple(
                    Row(name, batch)
                    for batch in settings.batches
                    for name in settings.formats
                    if name not in refused and name not in silent
                )
                spoken = tuple((name, why) for name, why in refused.items() if name not in silent)
                yield Problem(rows, columns, dtype, str(target), wanted, spoken)


def _targets(settings: KernelSettings) -> list[Target]:
    found: list[Target] = []
    for pattern in settings.patterns:
        words = settings.shares if pattern == "unstructured" else (pattern,)
        found += [Target.parse(word) for word in words]
    return found


def _refusal(name: str, target: Target, dtype: str, columns: int) -> str | None:
    if target.group and columns % target.group:
        return f"{target.group} does not divide {columns} columns"
    if name == "csr" and DTYPES[dtype] == 2:
        return f"torch has no CSR product in {dtype} on CPUs"
    return None


def _shape(word: str) -> tuple[int, int]:
    found = _SHAPE.match(word.strip().lower())
    if not found:
        raise UserError(
            f"shape '{shown(word)}' is none; write rows x columns (outputs x inputs) such as 11008x4096"
        )
    rows, columns = int(found[1]), int(found[2])
    if min(rows, columns) < 1 or rows * columns > 1 << 34:
        raise UserError(f"shape '{shown(word)}' holds {rows * columns} weights; use 1 to {1 << 34}")
    return rows, columns


def _share(word: str) -> Target:
    target = parse_sparsity(word)
    if target == DENSE:
        raise UserError("--sparsity 0 leaves nothing out; the row 'dense' stands beside every other share")
    return target


def _registered(patterns: object) -> tuple[tuple[int, int], ...]:
    """Distinct shapes of prunable matrices of registered models, up to ``MOST_BYTES``. Raises UserError."""
    from bench.models import registry
    from methods.families import family_of, shape_of

    names = (
        [entry.id for entry in registry.entries()]
        if patterns is None
        else registry.match(list(parse_list(patterns, "--models")))
    )
    found: dict[tuple[int, int], None] = {}
    for name in names:
        if registry.is_path(name):
            from methods.stream.source import config_of

            config: Mapping[str, Any] = config_of(Path(name.removeprefix(registry.PATH_PREFIX)))
        else:
            config = registry.get(name).config
        shape = shape_of(config)
        for matrix in family_of(shape).matrices(shape):
            if 4 * matrix.size <= MOST_BYTES:
                found[matrix.rows, matrix.columns] = None
    return tuple(found)


def _choices(value: object, option: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = unique(word.strip().lower() for word in parse_list(value, f"--{option}"))
    for word in words:
        if word not in allowed:
            raise UserError(
                f"--{option} '{shown(word)}' is unknown; use {', '.join(allowed)}{nearest(word, allowed)}"
            )
    return words


def _whole(value: object, option: str, least: int, most: int) -> int:
    text = str(value).strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise UserError(f"--{option} is '{shown(value)}'; use whole numbers from {least} to {most}")
    return int(text)
