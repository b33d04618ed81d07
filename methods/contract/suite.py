"""All parts of the contract in one class."""

from __future__ import annotations

from methods.contract.entry import EntryContract
from methods.contract.repeats import RepeatContract
from methods.contract.weights import WeightContract

__all__ = ["MethodContract"]


class MethodContract(EntryContract, WeightContract, RepeatContract):
    """Subclass it as ``TestMine`` with ``method = "mine"``; see ``methods.contract``."""
