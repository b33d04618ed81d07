"""A cell's pruned model on disk, in the forms asked for; returns figures, writes no records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.plan.saving import SLICED
from bench.results.records import Metric
from bench.run.phases import Figures
from methods.checkpoints.bitmap import save_bitmap
from methods.checkpoints.dense import save_dense
from methods.checkpoints.quantised import save_quantised
from methods.stream.source import CheckpointSource

if TYPE_CHECKING:
    from bench.plan.cells import Cell
    from bench.run.subject import Keys

__all__ = ["folder_of", "kept", "save"]

_WRITERS: Final[Mapping[str, Callable[[CheckpointSource, Path], list[Path]]]] = {
    "dense": save_dense,
    SLICED: save_dense,
    "bitmap": save_bitmap,
    "quantised": save_quantised,
}
_READ_BACK: Final = ("dense", "bitmap")
"""Forms that give the weights back bit for bit to our own reader (a sliced model lies where a dense one would)."""


def folder_of(out: Path, cell: Cell, keys: Keys, form: str) -> Path:
    """Where a cell's model lies in a form: ``checkpoints/NAME``, and ``checkpoints/NAME-bitmap`` and so on."""
    parts = [
        cell.model.removeprefix("path:").strip("/").replace("/", "-"),
        cell.method,
        cell.target,
        *([cell.recovery] if cell.recovery else []),
        keys.cell[:8],
    ]
    name = "_".join(parts).replace(":", "of").replace("%", "pct")
    return out / "checkpoints" / (name if form in ("dense", SLICED) else f"{name}-{form}")


def kept(out: Path, cell: Cell, keys: Keys) -> Path | None:
    """The cell's weights on disk, so that nothing need be pruned again for them; folders appear whole or not at all."""
    folders = (folder_of(out, cell, keys, form) for form in _READ_BACK)
    return next((folder for folder in folders if folder.exists()), None)


def save(form: str, source: CheckpointSource, folder: Path) -> Figures:
    """Write the model to ``folder``; its figure is what the weights' files take there, headers and all.

    Raises UnsupportedTarget where the form cannot hold this model; MachineError, CheckpointError.
    """
    files = {path.name: path.stat().st_size for path in _WRITERS[form](source, folder)}
    return Figures(
        metrics=(Metric(name=f"saved_bytes_{form}", unit="byte", value=sum(files.values())),),
        provenance={"saved": {"folder": folder.name, "files": files}},
    )
