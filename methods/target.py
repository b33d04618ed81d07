"""What a cell aims at: a share of weights removed, N of every M kept, or a width sliced."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from methods.errors import UserError, shown

__all__ = ["BITS", "DENSE", "Target"]

BITS = (2, 3, 4, 8)
"""Widths of the grids that a target may join to its sparsity."""

_NM = re.compile(r"^(\d{1,4}):(\d{1,4})$")
_PERCENT = re.compile(r"^(slice|params-|bytes-)?(\d{1,3}(?:\.\d{1,6})?)%$")
_BITS = re.compile(r"^(.*)\+(\d{1,2})bit$")


@dataclass(frozen=True, slots=True)
class Target:
    """One aim, as spelled in every record: ``50%``, ``2:4``, ``slice25%``, ``params-20%``, ``bytes-30%``, ``50%+4bit``.

    ``amount`` is the share removed (0 for N:M); ``keep`` of every ``group`` weights stay (N:M only);
    ``bits`` is the width of the joint quantisation grid, or None.
    """

    kind: str
    amount: Fraction = Fraction(0)
    keep: int = 0
    group: int = 0
    bits: int | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target's spelling. Raises UserError naming what was seen and what is allowed."""
        spelling, bits = text.strip(), None
        if found := _BITS.match(spelling):
            spelling, bits = found[1], int(found[2])
            if bits not in BITS:
                raise UserError(f"target '{shown(text)}': {bits} bits are not a grid; use 2, 3, 4 or 8")
        if found := _NM.match(spelling):
            return cls.nm(int(found[1]), int(found[2]), bits)
        if found := _PERCENT.match(spelling):
            kind = {None: "unstructured", "slice": "slice", "params-": "params", "bytes-": "bytes"}[found[1]]
            amount = Fraction(found[2]) / 100
            if amount >= 1:
                raise UserError(f"target '{shown(text)}' removes everything; use less than 100%")
            if amount == 0 and kind == "unstructured" and bits is None:
                return DENSE
            return cls(kind, amount, bits=bits)
        raise UserError(
            f"target '{shown(text)}' is none; use a share such as 50%, a pattern such as 2:4, slice25%, params-20% or bytes-30%"
        )

    @classmethod
    def nm(cls, keep: int, group: int, bits: int | None = None) -> Target:
        """Keep ``keep`` of every ``group`` consecutive weights of a row. Raises UserError unless 0 < keep < group."""
        if not 0 < keep < group:
            raise UserError(
                f"pattern '{keep}:{group}' keeps {keep} of every {group} weights; "
                "N must be at least 1 and below M, as in 2:4"
            )
        return cls("nm", Fraction(group - keep, group), keep, group, bits)

    @classmethod
    def unstructured(cls, share: Fraction | float | str) -> Target:
        """Remove this share of the weights, anywhere. Raises UserError unless 0 <= share < 1."""
        try:
            amount = Fraction(str(share))
        except (ValueError, ZeroDivisionError):
            raise UserError(f"sparsity '{share}' is no number; use a share such as 0.5") from None
        if not 0 <= amount < 1:
            raise UserError(
                f"sparsity {share} is not a share; use 0 <= sparsity < 1, such as 0.5 for half of the weights"
            )
        return DENSE if amount == 0 else cls("unstructured", amount)

    @property
    def density(self) -> Fraction:
        """Share of weights that stay."""
        return 1 - self.amount

    def __str__(self) -> str:
        suffix = f"+{self.bits}bit" if self.bits else ""
        if self.kind == "nm":
            return f"{self.keep}:{self.group}{suffix}"
        prefix = {"dense": "", "unstructured": "", "slice": "slice", "params": "params-", "bytes": "bytes-"}[
            self.kind
        ]
        return f"{prefix}{float(self.amount * 100):.10g}%{suffix}"


DENSE = Target("dense")
