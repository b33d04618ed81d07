"""How targets, seeds, parameters and sizes are spelled; methods.spelling reads methods.

Every function takes what a user typed and raises UserError with one line: what was seen, what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING

from methods.errors import UserError, nearest, shown
from methods.spelling import DENSE_METHOD
from methods.target import BITS, Target

if TYPE_CHECKING:
    from methods.registry import Parameter

__all__ = [
    "DENSE_METHOD",
    "Value",
    "nearest",
    "parse_bits",
    "parse_list",
    "parse_parameter",
    "parse_pattern",
    "parse_seed",
    "parse_share",
    "parse_size",
    "parse_sparsity",
    "shown",
    "typed",
    "unique",
]

Value = str | int | float | bool
"""What a method's parameter may be."""

_ASSIGNMENT = re.compile(r"^(?P<rule>[^.=\s]+)\.(?P<name>[^=\s]+)=(?P<value>.*)$", re.DOTALL)
_SIZE = re.compile(r"^(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)b?$", re.IGNORECASE)
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def unique(items: Iterable[str]) -> tuple[str, ...]:
    """Items in order, each once."""
    return tuple(dict.fromkeys(items))


def parse_list(value: object, option: str) -> tuple[str, ...]:
    """A comma list, or a sequence of such lists, as its words in order.

    Raises UserError for an empty list, an empty word (``a,,b``), or anything nested.
    """
    if isinstance(value, str):
        pieces: Sequence[object] = [value]
    elif isinstance(value, list | tuple):
        pieces = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        pieces = [str(value)]
    else:
        raise UserError(f"{option} is '{shown(value)}'; give one word or a list of words separated by commas")
    words = []
    for piece in pieces:
        if isinstance(piece, bool) or not isinstance(piece, str | int | float):
            raise UserError(f"{option} holds '{shown(piece)}'; give words separated by commas")
        words += [word.strip() for word in str(piece).split(",")]
    if not words or not all(words):
        text = ",".join(words)
        raise UserError(f"{option} '{shown(text)}' has an empty entry; separate entries by single commas")
    return tuple(words)


def parse_sparsity(text: str) -> Target:
    """Read a share of weights to remove, ``0.5`` or ``50%``. Raises UserError unless 0 <= share < 1."""
    return Target.unstructured(f"{_share(text, 'sparsity'):f}")


def parse_share(text: str, kind: str) -> Target:
    """Read a share of the width to slice, or of the parameters or bytes to save (``kind`` as in ``Target``).

    Raises UserError unless 0 <= share < 1, or where nothing is to be saved.
    """
    option = {"slice": "slicing"}.get(kind, kind)
    share = _share(text, option)
    if not share and kind != "slice":
        raise UserError(f"{option} '{shown(text)}' saves nothing; use a share above 0, such as 0.2")
    return Target(kind, Fraction(f"{share:f}"))


def _share(text: str, option: str) -> Decimal:
    word = text.strip()
    percent = word.endswith("%")
    try:
        share = Decimal(word[:-1] if percent else word)
    except InvalidOperation:
        share = Decimal("NaN")
    if not share.is_finite():
        hint = "; N:M patterns go to --pattern" if ":" in word else ""
        raise UserError(f"{option} '{shown(text)}' is no number; use a share such as 0.5{hint}")
    if percent:
        share /= 100
    elif 1 < share < 100:
        meant = f"{(share / 100).normalize():f}"
        raise UserError(f"{option} '{shown(text)}' is not a share; for {shown(word)} percent write {meant}")
    if not 0 <= share < 1:
        raise UserError(f"{option} '{shown(text)}' is not a share; use 0 <= {option} < 1, such as 0.5")
    if share and share.adjusted() < -6:
        raise UserError(f"{option} '{shown(text)}' is too fine; use at least 0.000001")
    # Target prints ten digits of the percentage: more would make two cells print alike.
    if len(share.normalize().as_tuple().digits) > 8:
        raise UserError(f"{option} '{shown(text)}' has too many digits; use at most eight")
    return share


def parse_pattern(text: str) -> Target | None:
    """Read ``2:4`` (keep 2 of every 4) as its target, ``unstructured`` as None. Raises UserError."""
    word = text.strip().lower()
    if word == "unstructured":
        return None
    if not re.fullmatch(r"\d+:\d+", word):
        near = nearest(word, ["unstructured"])
        raise UserError(f"pattern '{shown(text)}' is none; use unstructured or N:M such as 2:4{near}")
    if max(map(len, word.split(":"))) > 4:
        raise UserError(f"pattern '{shown(text)}' is too wide; N and M have at most four digits")
    return Target.parse(word)


def parse_bits(text: str) -> int | None:
    """Read the width of a quantisation grid, ``none`` as None. Raises UserError for a width that is no grid."""
    word = text.strip().lower()
    if word == "none":
        return None
    if word not in map(str, BITS):
        raise UserError(f"bits '{shown(text)}' are not a grid; use {', '.join(map(str, BITS))}, or none")
    return int(word)


def parse_seed(text: str) -> int:
    """Read one seed. Raises UserError unless it is a whole number from 0 to 2^63 - 1."""
    if not re.fullmatch(r"[0-9]{1,19}", text.strip()) or int(text) >= 2**63:
        raise UserError(f"seed '{shown(text)}' is not one; use whole numbers from 0, as in --seeds 0,1,2")
    return int(text)


def parse_size(text: str, option: str) -> int:
    """Read a size in bytes: ``2GiB``, ``500MB``, ``4G`` (GiB), ``0``. Raises UserError for anything else."""
    found = _SIZE.match(text.strip())
    if not found:
        raise UserError(f"{option} '{shown(text)}' is no size; use a number of bytes such as 2GiB or 500MB")
    number, prefix, binary = found[1], found[2].lower(), found[3]
    decimal = text.strip().lower().endswith("b") and not binary
    base = 1000 if decimal else 1024
    exponent = " kmgt".index(prefix) if prefix else 0
    return int(Decimal(number) * base**exponent)


def parse_parameter(text: str) -> tuple[str, str, str]:
    """Split ``sparsegpt.percdamp=0.1`` into rule, name and value. Raises UserError for another form."""
    found = _ASSIGNMENT.match(text.strip())
    if not found:
        raise UserError(f"--set '{shown(text)}' is not method.parameter=value, as in sparsegpt.percdamp=0.1")
    return found["rule"].lower(), found["name"].lower(), found["value"].strip()


def typed(rule: str, name: str, value: object, declared: Mapping[str, Parameter]) -> Value:
    """``value`` as the type that the method declares for parameter ``name``.

    Raises UserError for an unknown name, a value that does not read as that type, or one out of bounds.
    """
    if name not in declared:
        known = ", ".join(declared) or "none"
        raise UserError(f"{rule} has no parameter '{shown(name)}'; it has: {known}{nearest(name, declared)}")
    parameter = declared[name]
    read = _read(value, parameter.type)
    if read is None:
        raise parameter.of_another_type(f"{rule}.{name}", value)
    parameter.check(f"{rule}.{name}", read)
    return read


def _read(value: object, kind: type) -> Value | None:
    """``value``, typed by the user or read from YAML, as ``kind``; None where it is none."""
    if isinstance(value, bool):
        return value if kind is bool else None
    text = str(value).strip()
    if kind is bool:
        lowered = text.lower()
        return True if lowered in _TRUE else False if lowered in _FALSE else None
    if kind is str:
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number.adjusted()) > 300:
        return None
    if kind is int:
        return int(number) if number == number.to_integral_value() and number.adjusted() < 18 else None
    return float(number)
