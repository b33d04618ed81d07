"""How fast a machine is: measured on this one, or given for another (``--rates``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.plan.capacity import Machine
from bench.plan.grammar import nearest, parse_list, parse_size, shown
from methods.errors import UserError

__all__ = ["Elsewhere", "Rates", "parse_rates"]

_SIZES: Final = ("memory", "host", "disk", "read", "write", "copy")
_RATES: Final = ("flops", "flops32")
_NEEDED: Final = ("memory", "flops", "flops32", "read")


@dataclass(frozen=True, slots=True)
class Rates:
    """FLOP/s reached in the compute dtype and in that of Hessians (``wide``); byte/s of the disk and to a GPU.

    What is not known is infinite: it takes no time in an estimate.
    """

    flops: float
    wide: float
    read: float = math.inf
    write: float = math.inf
    copy: float = math.inf


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A machine to plan for that is not this one: what it has, and its rates."""

    machine: Machine
    rates: Rates


def parse_rates(value: object) -> Elsewhere | None:
    """``memory=80GiB,flops=150e12,flops32=40e12,read=3GB``, or a mapping of that. Raises UserError, one line."""
    if value is None or isinstance(value, Elsewhere):
        return value
    found: dict[str, float] = {}
    for name, text in _pairs(value):
        if name not in (*_SIZES, *_RATES):
            known = ", ".join((*_SIZES, *_RATES))
            raise UserError(
                f"--rates has the unknown '{shown(name)}'; known: {known}{nearest(name, (*_SIZES, *_RATES))}"
            )
        found[name] = parse_size(text, f"--rates {name}") if name in _SIZES else _number(name, text)
        if not found[name] > 0:
            raise UserError(f"--rates {name} is '{shown(text)}'; give a number above 0")
    lacking = [name for name in _NEEDED if name not in found]
    if lacking:
        raise UserError(
            f"--rates lacks {', '.join(lacking)}; write memory=80GiB,flops=150e12,flops32=40e12,read=3GB "
            "(bytes, FLOP/s, byte/s)"
        )
    disk = int(found.get("disk", 1 << 62))
    there = Machine(int(found["memory"]), disk, disk, one_disk=False, host=int(found.get("host", 1 << 62)))
    read, write, copy = found["read"], found.get("write", found["read"]), found.get("copy", math.inf)
    return Elsewhere(there, Rates(found["flops"], found["flops32"], read, write, copy))


def _pairs(value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [(str(name).strip().lower(), str(text)) for name, text in value.items()]
    pairs = []
    for word in parse_list(value, "--rates"):
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--rates has '{shown(word)}'; write name=value, as in memory=80GiB")
        pairs.append((name.strip().lower(), text))
    return pairs


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--rates {name} is '{shown(text)}'; give FLOP/s, such as 150e12")
    return number
