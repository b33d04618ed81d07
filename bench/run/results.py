"""Where a cell's records come from and go to: the store of this process, or another process that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import save_values
from methods.interface import Observer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CellObserver", "Results", "StoreResults"]


class CellObserver(Observer, Protocol):
    """An observer that keeps the warnings of the phase in progress, for its record."""

    warnings: list[str]


class Results(Protocol):
    """What a runner of cells knows of earlier runs, and where its own results go."""

    def records(self) -> list[Record]:
        """The latest record of every key that concerns this runner's cells."""
        ...

    def append(self, record: Record) -> None:
        """Keep a record; it is safe on return. Raises MachineError, StoreError."""
        ...

    def save_values(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
        """Keep raw values; the name under which a record refers to them. Raises MachineError, StoreError."""
        ...

    def keep_traceback(self, name: str, text: str) -> str:
        """Keep what an unforeseen failure left; where it lies."""
        ...


class StoreResults:
    """Results in a store that this process writes."""

    def __init__(self, out: Path, store: Store) -> None:
        self.out = out
        self.store = store

    def records(self) -> list[Record]:
        """The latest record of every key in the store."""
        return self.store.records()

    def append(self, record: Record) -> None:
        """Add a record to the store, durably."""
        self.store.append(record)

    def save_values(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
        """Write OUT/values/<name>."""
        return save_values(self.out, arrays)

    def keep_traceback(self, name: str, text: str) -> str:
        """Write OUT/errors/<name>."""
        path = self.out / "errors" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)
