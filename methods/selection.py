"""Which matrices of a model a layer-wise method works on: ``--layers blocks=0-3,only=mlp``. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.errors import UserError, nearest, shown

if TYPE_CHECKING:
    from methods.interface import Matrix

__all__ = ["EVERYTHING", "Selection"]

_CLAUSES = ("blocks", "first", "last", "only", "except")
_SPANS = re.compile(r"^\d{1,6}(?:-\d{1,6})?$")
_PART = re.compile(r"^[A-Za-z0-9_.-]+$")
_HELP = "use blocks=0-3, first=N, last=N, only=PART, except=PART, invert, separated by commas"


@dataclass(frozen=True, slots=True)
class Selection:
    """Clauses that must all hold; ``|`` separates alternatives, as in ``only=q_proj|k_proj``.

    Blocks: those of ``spans`` (first and last number, inclusive), the ``first`` so many and the ``last`` so
    many, together; all where none is given. Names: those that contain a part of ``only``, without those that
    contain a part of ``excluded``. ``invert`` takes all other matrices instead. SparseGPT's flags: --minlayer
    and --maxlayer (exclusive) are ``blocks``, --prune_only is ``only``, --invert is ``invert``.
    """

    spans: tuple[tuple[int, int], ...] = ()
    first: int = 0
    last: int = 0
    only: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    invert: bool = False

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read ``blocks=0-3|8,only=mlp,except=down_proj``. Raises UserError naming what was seen and what is allowed."""
        found: dict[str, tuple[str, ...]] = {}
        for word in (part.strip() for part in text.split(",")) if text.strip() else ():
            key, equals, value = (part.strip() for part in word.partition("="))
            key = key.lower()
            if key in found:
                raise UserError(f"--layers '{shown(text)}' has {key} twice; separate alternatives by |")
            if key == "invert" and not equals:
                found[key] = ()
            elif key not in _CLAUSES or not equals:
                near = nearest(key, (*_CLAUSES, "invert"))
                raise UserError(f"--layers has '{shown(word)}', which is no clause; {_HELP}{near}")
            else:
                found[key] = tuple(part.strip() for part in value.split("|"))
        return cls(
            spans=tuple(_span(part) for part in found.get("blocks", ())),
            first=_count("first", found),
            last=_count("last", found),
            only=_parts("only", found),
            excluded=_parts("except", found),
            invert="invert" in found,
        )

    def __str__(self) -> str:
        spans = "|".join(str(low) if low == high else f"{low}-{high}" for low, high in self.spans)
        clauses = {
            "blocks": spans,
            "first": str(self.first or ""),
            "last": str(self.last or ""),
            "only": "|".join(self.only),
            "except": "|".join(self.excluded),
        }
        words = [f"{key}={value}" for key, value in clauses.items() if value]
        return ",".join([*words, *(["invert"] if self.invert else [])])

    def __bool__(self) -> bool:
        """Whether anything is selected away."""
        return self != EVERYTHING

    def holds(self, index: int, name: str, blocks: int) -> bool:
        """Whether matrix ``name`` of block ``index`` is selected, in a model of so many ``blocks``."""
        return (self._block(index, blocks) and self._name(name)) != self.invert

    def of(self, matrices: Sequence[Matrix], blocks: int) -> list[tuple[int, Matrix]]:
        """The selected (block, matrix) of a model whose every block has ``matrices``, in order."""
        return [
            (index, matrix)
            for index in range(blocks)
            for matrix in matrices
            if self.holds(index, matrix.name, blocks)
        ]

    def refuse(self, matrices: Sequence[Matrix], blocks: int) -> str | None:
        """Why this selects nothing on such a model, naming what exists, or None. No clause may match nothing."""
        there = f"it has blocks 0-{blocks - 1} with {', '.join(matrix.name for matrix in matrices)}"
        for low, high in self.spans:
            if low >= blocks:
                return (
                    f"--layers blocks={low if low == high else f'{low}-{high}'} is not in this model: {there}"
                )
        for key, parts in (("only", self.only), ("except", self.excluded)):
            for part in parts:
                if not any(part in matrix.name for matrix in matrices):
                    return f"--layers {key}={part} matches no matrix of this model: {there}"
        if not self.of(matrices, blocks):
            return f"--layers {self} leaves no matrix of this model: {there}"
        return None

    def _block(self, index: int, blocks: int) -> bool:
        if not (self.spans or self.first or self.last):
            return True
        within = any(low <= index <= high for low, high in self.spans)
        return within or index < self.first or index >= blocks - self.last

    def _name(self, name: str) -> bool:
        wanted = not self.only or any(part in name for part in self.only)
        return wanted and not any(part in name for part in self.excluded)


def _span(text: str) -> tuple[int, int]:
    if not _SPANS.match(text):
        raise UserError(f"--layers blocks={shown(text)} is no range; write blocks=0-3, or blocks=0-3|8")
    low, _, high = text.partition("-")
    if high and int(high) < int(low):
        raise UserError(f"--layers blocks={text} runs backwards; write blocks={high}-{low}")
    return int(low), int(high or low)


def _count(key: str, found: dict[str, tuple[str, ...]]) -> int:
    if key not in found:
        return 0
    text = "|".join(found[key])
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**6:
        raise UserError(f"--layers {key}={shown(text)} is no number of blocks; write {key}=2")
    return int(text)


def _parts(key: str, found: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    for part in found.get(key, ()):
        if not _PART.match(part):
            raise UserError(
                f"--layers {key}={shown(part)} is no part of a matrix's name; write {key}=mlp or {key}=q_proj|k_proj"
            )
    return found.get(key, ())


EVERYTHING = Selection()
