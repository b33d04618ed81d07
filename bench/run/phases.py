"""A cell's pruning and the figures of its weights; returns figures, writes no records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.measure.memory import PeakMemory
from bench.measure.reference import Reference
from bench.plan.machine import batch_tokens
from bench.results.records import MatrixFigures, Metric
from bench.run import guards
from bench.run.kept import kept_within, terms_of
from methods import registry
from methods.families import sizes
from methods.interface import (
    Calibration,
    MatrixReport,
    ModelShape,
    Observer,
    PruneReport,
    RecoveryReport,
    Run,
)
from methods.quantise.stored import packed_bytes
from methods.selection import Selection
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

if TYPE_CHECKING:
    from bench.plan.cells import Cell
    from bench.run.subject import Subject
    from bench.text.sources import Windows

__all__ = ["Figures", "dense_figures", "notes_on", "prune", "run_of", "source_of"]


_OWN_PHASES = ("allocate", "forward", "moments", "solve")
"""What a method itself takes; reading, writing and the held-out error are the harness's."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a phase measured, ready for a record."""

    metrics: tuple[Metric, ...]
    matrices: tuple[MatrixFigures, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def run_of(
    cell: Cell, work: Path, identity: str, observer: Observer, *, shared: Path | None = None, model: str = ""
) -> Run:
    """How the cell's pruner runs; ``shared`` is the folder of what cells of one model share, ``model`` its revision."""
    return Run(
        seed=cell.seed or 0,
        schedule=cell.schedule,
        hessian_dtype=getattr(torch, cell.hessian_dtype),
        batch_tokens=cell.placement.batch_tokens or batch_tokens(cell.device),
        hidden_budget=cell.hidden_budget,
        device_states=cell.placement.device_states,
        prefetch=cell.placement.prefetch,
        work=work,
        identity=identity,
        shared=shared,
        model=model,
        observer=observer,
    )


def source_of(cell: Cell, subject: Subject, overlay: Path | None = None) -> CheckpointSource:
    """The model's blocks; with ``overlay`` the pruned ones: a folder of finished blocks, or a saved checkpoint."""
    folder = subject.checkpoint.path
    if overlay is not None and not any(overlay.glob("block-*.safetensors")):
        folder, overlay = overlay, None
    return CheckpointSource(folder, dtype=getattr(torch, cell.dtype), device=cell.device, overlay=overlay)


def prune(cell: Cell, subject: Subject, run: Run, blocks: BlockFolder) -> Figures:
    """Prune the model into ``blocks``; goes on where a killed prune of the same identity stopped."""
    drawn = (
        subject.calibration(cell.calibration, cell.seed or 0, cell.data_dir)
        if cell.calibration is not None
        else None
    )
    if cell.heldout is None:
        raise ValueError(f"{cell.name}: a pruning cell names its held-out text")
    heldout = subject.heldout(cell.heldout, cell.data_dir)
    kept = torch.from_numpy(heldout.tokens)
    calibration = Calibration(
        torch.from_numpy(drawn.tokens) if drawn is not None else kept[:0],
        # one walk holds both, so held-out windows are cut to the length of the drawn ones
        kept[:, : drawn.tokens.shape[1]] if drawn is not None else kept,
    )
    pruner = registry.get(cell.method, dict(cell.parameters), cell.layers, cell.recovery)
    source = source_of(cell, subject)
    reference = Reference(cell.device)
    reference.sample()
    with PeakMemory(cell.device) as memory:
        report = pruner.prune(source, calibration, Target.parse(cell.target), blocks, run)
    reference.sample()
    pruned = source_of(cell, subject, blocks.folder)
    provenance: dict[str, Any] = {
        "heldout": heldout.provenance,
        "resumed_blocks": report.resumed_blocks,
        "reference": reference.facts(),
    }
    if drawn is not None:
        provenance["calibration"] = drawn.provenance
    if report.outside is not None:
        provenance["outside"] = {
            "program": report.outside.program,
            "versions": dict(report.outside.versions),
            **report.outside.notes,
        }
    if report.recovery is not None:
        provenance["recovery"] = _training_facts(report.recovery)
    sized, empty = _size_metrics(source.shape, pruned, report.matrices)
    matrices = tuple(_figures(matrix) for matrix in report.matrices)
    alarms = guards.of_matrices(matrices, empty)
    exceeded: tuple[str, ...] = ()
    if alarms:
        provenance["guards"] = guards.facts(alarms)
    stored = next(metric.value or 0 for metric in sized if metric.name == "bytes")
    if report.outside is None and not (report.resumed_blocks or _goes_on(report)):
        held = kept_within(cell, "prune", memory)
        provenance["memory"] = held.facts | terms_of(cell)
        exceeded = held.warnings
    metrics = [
        *sized,
        *_selection_metrics(pruned, report.matrices, cell.layers),
        *_grid_metrics(pruned, stored),
        *_cost_metrics(report, memory),
        *(_recovery_metrics(report.recovery) if report.recovery is not None else ()),
    ]
    resumed = (
        (
            f"went on after block {report.resumed_blocks - 1} of a killed run: peak memory was not measured whole",
        )
        if report.resumed_blocks and report.outside is None
        else ("went on with a killed run: peak memory was not measured whole",)
        if _goes_on(report)
        else ()
    )
    return Figures(
        metrics=tuple(metrics),
        matrices=matrices,
        seconds=dict(report.seconds),
        warnings=(
            *report.warnings,
            *exceeded,
            *resumed,
            *guards.texts(alarms),
            *notes_on(drawn),
            *notes_on(heldout),
        ),
        provenance=provenance,
    )


def notes_on(windows: Windows | None) -> tuple[str, ...]:
    """What differs from what the protocol's name promises, as the text's provenance says."""
    notes = windows.provenance.get("notes", ()) if windows is not None else ()
    return tuple(str(note) for note in notes)


def dense_figures(cell: Cell, subject: Subject) -> Figures:
    """Sizes of the unpruned model."""
    source = source_of(cell, subject)
    sized, empty = _size_metrics(source.shape, source, ())
    alarms = guards.of_matrices((), empty)
    return Figures(
        metrics=tuple(sized),
        warnings=guards.texts(alarms),
        provenance={"guards": guards.facts(alarms)} if alarms else {},
    )


def _size_metrics(
    dense: ModelShape, source: CheckpointSource, matrices: Sequence[MatrixReport]
) -> tuple[list[Metric], set[tuple[int, str]]]:
    """Parameters and bytes are counted on disk; removed weights are those that the method chose.

    With the matrices, by block and name, that hold zeros alone.
    """
    prunable = sizes.prunable(dense)
    removed = sum(matrix.removed for matrix in matrices)
    total, empty = _Stored(), set()
    for index in range(source.shape.blocks):
        linears = {f"{matrix.name}.weight" for matrix in source.family.matrices(source.shape, index)}
        for name, tensor in source.raw_block(index).items():
            nonzero = total.add(tensor, packed=name in linears)
            if name in linears and not nonzero:
                empty.add((index, name.removesuffix(".weight")))
    for name in source.family.outer_tensors(source.shape):
        total.add(source.raw_outer(name), packed=False)
    metrics = [
        Metric(name="weights_prunable", unit="1", value=prunable),
        Metric(name="weights_removed", unit="1", value=removed),
        Metric(name="sparsity", unit="1", value=removed / prunable),
        Metric(name="parameters", unit="1", value=total.parameters),
        Metric(name="parameters_nonzero", unit="1", value=total.nonzero),
        Metric(name="bytes", unit="byte", value=total.bytes),
        Metric(
            name="flops_per_token",
            unit="FLOP/token",
            value=sizes.flops_per_token(source.shape, source.shape.positions),
        ),
    ]
    if matrices and source.shape.slices is None:
        metrics.append(Metric(name="bytes_bitmap", unit="byte", value=total.packed))
    return metrics, empty


class _Stored:
    """What tensors add up to; ``packed``: bytes with the matrices among them as bitmaps and non-zeros where
    that is smaller, in closed form.
    """

    def __init__(self) -> None:
        self.parameters = self.nonzero = self.bytes = self.packed = 0

    def add(self, tensor: Tensor, *, packed: bool) -> int:
        """Count a tensor; returns how many of its values are not zero."""
        nonzero = int(torch.count_nonzero(tensor))
        self.parameters += tensor.numel()
        self.nonzero += nonzero
        self.bytes += tensor.nbytes
        bitmap = sizes.bitmap_bytes(tensor.numel(), nonzero, tensor.itemsize)
        self.packed += min(bitmap, tensor.nbytes) if packed else tensor.nbytes
        return nonzero


def _selection_metrics(
    source: CheckpointSource, matrices: Sequence[MatrixReport], layers: str
) -> list[Metric]:
    """The share removed of the matrices worked on, which the target speaks of; nothing where these are all."""
    selection = Selection.parse(layers)
    if not selection:
        return []
    selected = sum(
        matrix.size for _, matrix in selection.of(source.family.matrices(source.shape), source.shape.blocks)
    )
    removed = sum(matrix.removed for matrix in matrices)
    return [
        Metric(name="weights_selected", unit="1", value=selected),
        Metric(name="sparsity_selected", unit="1", value=removed / selected),
    ]


def _grid_metrics(source: CheckpointSource, stored: float) -> list[Metric]:
    """Sizes with quantised matrices packed, scales and zero points included; nothing where none are quantised.

    ``stored``: bytes of all parameters as they are on disk.
    """
    weights = packed = unpacked = 0
    for index in range(source.shape.blocks):
        grids = source.grids(index)
        block = source.raw_block(index) if grids else {}
        for name, grid in grids.items():
            weight = block[f"{name}.weight"]
            weights += weight.numel()
            unpacked += weight.nbytes
            rows, columns = weight.shape
            packed += packed_bytes(rows, columns, grid, weight.dtype)
    if not weights:
        return []
    return [
        Metric(name="weights_quantised", unit="1", value=weights),
        Metric(name="bits_per_quantised_weight", unit="bit", value=8 * packed / weights),
        Metric(name="bytes_quantised", unit="byte", value=stored - unpacked + packed),
    ]


def _cost_metrics(report: PruneReport, memory: PeakMemory) -> list[Metric]:
    metrics = [
        Metric(name="prune_time", unit="s", value=sum(report.seconds.get(name, 0.0) for name in _OWN_PHASES)),
    ]
    if report.outside is not None or not (report.resumed_blocks or _goes_on(report)):
        base, peak = memory.base, memory.peak
        if report.outside is not None:
            base, peak = report.outside.base_memory, report.outside.peak_memory
        metrics += [
            Metric(name="peak_memory", unit="byte", value=peak),
            Metric(name="base_memory", unit="byte", value=base),
        ]
    for name in ("calibration_error", "heldout_error"):
        known = [
            (m.rows * m.columns, getattr(m, name)) for m in report.matrices if getattr(m, name) is not None
        ]
        if known:
            mean = sum(size * error for size, error in known) / sum(size for size, _ in known)
            metrics.append(Metric(name=name, unit="1", value=mean))
    return metrics


def _goes_on(report: PruneReport) -> bool:
    """Whether a part of what leads to a recovered model was done by a killed run."""
    return report.recovery is not None and report.recovery.resumed


def _recovery_metrics(recovery: RecoveryReport) -> list[Metric]:
    """What training took; ``prune_time`` has none of it."""
    return [
        Metric(name="recover_time", unit="s", value=recovery.seconds),
        Metric(name="recover_steps", unit="1", value=recovery.steps),
        Metric(name="recover_tokens", unit="1", value=recovery.tokens),
        Metric(name="recover_parameters", unit="1", value=recovery.trainable),
        Metric(name="heldout_nll_pruned", unit="nat/token", value=recovery.loss_before[-1]),
        Metric(name="heldout_nll_recovered", unit="nat/token", value=recovery.loss_after[-1]),
    ]


def _training_facts(recovery: RecoveryReport) -> dict[str, Any]:
    """By stage: the target pruned to, held-out loss before and after training, the best step."""
    return {
        "name": recovery.name,
        "targets": list(recovery.targets),
        "loss_before": list(recovery.loss_before),
        "loss_after": list(recovery.loss_after),
        "best_steps": list(recovery.best_steps),
    }


def _figures(matrix: MatrixReport) -> MatrixFigures:
    return MatrixFigures(**{name: getattr(matrix, name) for name in MatrixReport.__slots__})
