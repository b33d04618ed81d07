"""Files of a report or leaderboard, each replaced whole or left as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from bench.results.files import fault, replace_file

__all__ = ["number", "write_texts"]


def write_texts(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write every text to its path as UTF-8; `folder`, that holds them, is made. Raises `MachineError`."""
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            replace_file(path, text.encode("utf-8"))
    except OSError as error:
        raise fault("write", path, error) from error


def number(value: float | None) -> float | str | None:
    """A figure for JSON, which has no NaN and no infinities: these as text."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
