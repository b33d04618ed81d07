"""Named failures. The text of each is the one line that a user sees.

PruneBenchError
├── UserError            wrong usage or bad input: exit code 2
│   ├── UnsupportedModel     a model this program cannot walk
│   └── UnsupportedTarget    a (method, model, target) that is refused, with the reason
├── ModelUnavailable     missing, gated, offline: the cell fails, the grid goes on
├── CheckpointError      corrupt, truncated or mismatching weights
├── DataUnavailable      an evaluation or calibration text that cannot be had
├── HessianError         no damping up to the bound makes the Hessian factor
├── NonFiniteError       NaN or infinity in weights, activations or results
├── OutsideError         another program that a method runs crashed, hung or gave no whole result
├── StoreError           a results store that cannot be read or written
└── MachineError         disk, memory, network: a fault of the machine
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataUnavailable",
    "HessianError",
    "MachineError",
    "ModelUnavailable",
    "NonFiniteError",
    "OutsideError",
    "PruneBenchError",
    "StoreError",
    "UnsupportedModel",
    "UnsupportedTarget",
    "UserError",
    "nearest",
    "reason_of",
    "shown",
]

_SHOWN = 60
_REASON = 200


def shown(value: object) -> str:
    """A value as an error quotes it: one line, printable, not longer than a line can bear."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def reason_of(error: BaseException) -> str:
    """What another library's error says, on one line; its type where it says nothing."""
    return " ".join(str(error).split())[:_REASON] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest known word, or nothing where none is close."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


class PruneBenchError(Exception):
    """Base of every failure that has a name; ``str(error)`` is one line for the user."""

    exit_code = 1


class UserError(PruneBenchError):
    """Wrong usage or bad input: names the value seen, what is allowed and what to do."""

    exit_code = 2


class UnsupportedModel(UserError):
    """The model's architecture is none that a family adapter covers."""


class UnsupportedTarget(UserError):
    """The method cannot reach this target on this model; becomes a ``refused`` record."""


class ModelUnavailable(PruneBenchError):
    """The model is not on disk and cannot be fetched (missing, gated, offline)."""


class CheckpointError(PruneBenchError):
    """Weights are corrupt, truncated, or do not match their config."""


class DataUnavailable(PruneBenchError):
    """A text is neither in the data folder nor on a hub that answers."""


class HessianError(PruneBenchError):
    """A Hessian that no damping up to the bound makes positive definite."""


class NonFiniteError(PruneBenchError):
    """NaN or infinity where a number must be."""


class OutsideError(PruneBenchError):
    """Another program that a method runs crashed, hung, or gave no whole result."""


class StoreError(PruneBenchError):
    """A results store that cannot be read or written."""


class MachineError(PruneBenchError):
    """A fault of the machine: disk full, read-only, out of memory, no network."""
