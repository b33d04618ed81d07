"""Stands in for loguru: one logger that hands records to its sinks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any


class _Logger:
    def __init__(self) -> None:
        self.sinks: list[Callable[[Any], None]] = []

    def add(self, sink: Callable[[Any], None], level: str) -> None:
        self.sinks.append(sink)

    def log(self, level: str, text: str) -> None:
        record = {"message": text, "time": datetime.now(UTC), "level": SimpleNamespace(name=level)}
        for sink in self.sinks:
            sink(SimpleNamespace(record=record))


logger = _Logger()
