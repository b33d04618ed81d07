"""Wraps any pruner: prune, recover, and in a gradual schedule prune deeper and recover again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.errors import UnsupportedTarget, UserError
from methods.inference.assemble import assemble
from methods.interface import (
    BlockSink,
    BlockSource,
    Calibration,
    MatrixReport,
    ModelShape,
    Outside,
    Pruner,
    PruneReport,
    RecoveryReport,
    Reshaping,
    Run,
)
from methods.recover.gradual import stage_targets, steps_of_stages
from methods.recover.masked import Places, check_zeros, places_of
from methods.recover.training import Trained, Training, train
from methods.selection import EVERYTHING, Selection
from methods.stream.errors import heldout_errors
from methods.stream.sink import BlockFolder, write_json
from methods.stream.source import CheckpointSource
from methods.stream.stopwatch import Stopwatch
from methods.target import Target

__all__ = ["Attached", "Recovered", "Recovery", "ReshapingRecovered", "recovered"]


class Attached(Protocol):
    """A model prepared for training."""

    parameters: dict[str, nn.Parameter]
    """What trains, by name."""

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """What training changed, by full name, float32, removed weights zero."""
        ...


class Recovery(Protocol):
    """A way to train a pruned model."""

    @property
    def name(self) -> str:
        """As ``--recover`` spells it."""
        ...

    @property
    def training(self) -> Training:
        """The loop's settings; ``steps`` of all stages together."""
        ...

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        ...

    def attach(self, model: nn.Module, places: Places, run: Run, key: str) -> Attached:
        """Prepare an assembled float32 model, of which nothing trains yet; ``key`` names the stage's random numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Recovered:
    """``pruner``, followed by ``recovery``; with ``stages`` above 1 both, over and over, to deeper targets.

    Every stage trains on the calibration windows only, and the held-out ones choose its best step. The stages
    share ``recovery``'s steps, so that a gradual schedule trains as long as a recovery after one pruning. The last
    stage prunes to the very target, and what it removed stays zero.
    """

    pruner: Pruner
    recovery: Recovery
    stages: int = 1

    @property
    def needs_calibration(self) -> bool:
        """There is nothing else to train on."""
        return True

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """The reason this cannot be reached, or None: the pruner's own, or why it cannot be trained or staged."""
        if target.bits:
            return (
                f"--recover {self.recovery.name} would move weights off their {target.bits}-bit grids; "
                f"ask for {str(target).split('+')[0]} without +{target.bits}bit, or for --recover none"
            )
        if reason := self.recovery.missing() or self.pruner.refuse(shape, target):
            return reason
        if self.recovery.training.steps < self.stages:
            return (
                f"{self.stages} stages need {self.stages} steps at least; "
                f"{self.recovery.name}.steps is {self.recovery.training.steps}"
            )
        if self.stages == 1:
            return None
        *between, _ = stage_targets(target, self.stages)
        if isinstance(self.pruner, Reshaping) and self.pruner.pruned_shape(shape, target) != shape:
            return (
                f"--gradual {self.stages}: a model whose width is cut cannot be cut again, since its directions "
                "are no longer those of one stream; leave out --gradual, or use --gradual 1"
            )
        for stage, aim in enumerate(between, 1):
            if reason := self.pruner.refuse(shape, aim):
                return f"--gradual {self.stages}: its stage {stage} aims at {aim}, and {reason}"
        return None

    def prune(
        self, source: BlockSource, calibration: Calibration | None, target: Target, sink: BlockSink, run: Run
    ) -> PruneReport:
        """Prune and train every stage into ``sink``.

        Raises what the pruner raises, NonFiniteError where training diverges, UserError for a source that is no
        checkpoint on disk.
        """
        if reason := self.refuse(source.shape, target):
            raise UnsupportedTarget(reason)
        if calibration is None or not len(calibration.tokens) or not len(calibration.heldout):
            raise UserError(
                f"{self.recovery.name} trains on calibration windows and chooses on held-out ones; give both"
            )
        if not isinstance(source, CheckpointSource) or source.overlay is not None:
            raise UserError(
                f"{self.recovery.name} trains models that lie whole in a folder; save this one first"
            )
        with _folder(run) as work:
            return _Schedule(self, source, calibration, target, sink, run, work).go()


class ReshapingRecovered(Recovered):
    """The same around a pruner whose models have other shapes."""

    __slots__ = ()

    def pruned_shape(self, shape: ModelShape, target: Target) -> ModelShape:
        """Sizes of the pruned model: training changes none. Raises UnsupportedTarget as the pruner does."""
        if not isinstance(self.pruner, Reshaping):
            raise TypeError("the pruner inside reshapes no model")
        return self.pruner.pruned_shape(shape, target)


def recovered(pruner: Pruner, recovery: Recovery, stages: int = 1) -> Recovered:
    """``pruner`` with ``recovery`` behind it; it reshapes models where ``pruner`` does."""
    kind = ReshapingRecovered if isinstance(pruner, Reshaping) else Recovered
    return kind(pruner, recovery, stages)


@contextmanager
def _folder(run: Run) -> Iterator[Path]:
    """Where the stages lie: under the run's work folder, or in one that is dropped in the end."""
    if run.work is not None:
        yield run.work / "stages"
        return
    with tempfile.TemporaryDirectory(prefix="prune-bench-") as folder:
        yield Path(folder)


class _Schedule:
    """One pass through all stages, each resumable from what lies in its folder."""

    def __init__(
        self,
        what: Recovered,
        source: CheckpointSource,
        calibration: Calibration,
        target: Target,
        sink: BlockSink,
        run: Run,
        work: Path,
    ) -> None:
        self.what, self.source, self.calibration, self.target = what, source, calibration, target
        self.sink, self.run, self.work = sink, run, work
        self.layers: Selection = getattr(what.pruner, "layers", EVERYTHING)
        self.identity = f"{run.identity}/{what.recovery!r}/{what.stages}/{target}"
        self.clock = Stopwatch(source.device)
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.trained: list[Trained] = []
        self.trainable = 0
        self.resumed = False

    def go(self) -> PruneReport:
        """Prune and train, stage by stage."""
        targets = stage_targets(self.target, self.what.stages)
        steps = steps_of_stages(self.what.recovery.training.steps, self.what.stages)
        before: Path | None = None
        report = PruneReport((), {})
        for number, (aim, count) in enumerate(zip(targets, steps, strict=True), 1):
            folder = self.work / f"stage-{number}"
            last = number == len(targets)
            report = self._prune(number, aim, folder, before)
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)  # its successor holds all that it held
            out = BlockFolder(folder / "recovered")
            if last or not self._finished(folder):
                trained = self._recover(number, count, folder, self.sink if last else out, report)
                done = {"identity": self.identity, "trained": dataclasses.asdict(trained)}
                write_json(folder / "trained.json", done)
            else:
                stored = _read(folder / "trained.json")
                trained = replace(Trained(**stored["trained"]), resumed=True)
            self.trained.append(trained)
            if not last:
                shutil.rmtree(folder / "pruned", ignore_errors=True)
                shutil.rmtree(folder / "training", ignore_errors=True)
            before = out.folder
        return self._report(report, targets)

    def _prune(self, number: int, aim: Target, folder: Path, before: Path | None) -> PruneReport:
        """Prune what the stage before left into ``folder``/pruned, or find it pruned."""
        note, begun = folder / "pruned.json", folder / "begun.json"
        if self._same(note):
            report = _restored(_read(note)["report"])
            self.resumed = True
        else:
            if not self._same(begun):
                shutil.rmtree(folder, ignore_errors=True)
                write_json(begun, {"identity": self.identity})
            source = _under(self.source, before, self.source.dtype)
            run = replace(
                self.run,
                work=folder / "walk",
                identity=f"{self.identity}/{number}",
                # what cells share is of the dense model
                shared=self.run.shared if number == 1 else None,
            )
            blocks = BlockFolder(folder / "pruned")
            report = self.what.pruner.prune(source, self.calibration, aim, blocks, run)
            self.resumed |= report.resumed_blocks > 0
            if before is not None:
                _carry_outer(before, blocks, {})
            write_json(note, {"identity": self.identity, "report": dataclasses.asdict(report)})
            shutil.rmtree(folder / "walk", ignore_errors=True)
        for name, seconds in report.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        staged = f"stage {number} ({aim}): " if self.what.stages > 1 else ""
        self.warnings += [staged + warning for warning in report.warnings]
        return report

    def _recover(
        self, number: int, steps: int, folder: Path, sink: BlockSink, report: PruneReport
    ) -> Trained:
        """Train the pruned model of ``folder`` and put the result into ``sink``."""
        pruned = _under(self.source, folder / "pruned", torch.float32)
        removed = {(matrix.block, matrix.name): matrix.removed for matrix in report.matrices}
        places = places_of(
            pruned, self.source, self.layers, removed if number > 1 else None, self.target.group
        )
        with self.clock("recover_read"):
            model = assemble(pruned)
        recovery = self.what.recovery
        key = f"recover/{number}"
        attached = recovery.attach(model, places, self.run, key)
        self.trainable = sum(places.trainable(name, tensor) for name, tensor in attached.parameters.items())
        trained = train(
            recovery.name,
            model,
            attached.parameters,
            self.calibration,
            replace(recovery.training, steps=steps),
            self.run,
            key,
            folder / "training",
            f"{self.identity}/{number}",
        )
        with self.clock("recover_write"):
            _write(pruned, dict(attached.merged()), places, sink)
        return trained

    def _report(self, last: PruneReport, targets: tuple[Target, ...]) -> PruneReport:
        """The last stage's matrices, every stage's cost; held-out errors are those of the trained weights."""
        seconds = {**self.seconds, "recover": sum(trained.seconds for trained in self.trained)}
        errors = self._errors()
        return PruneReport(
            tuple(
                replace(
                    matrix,
                    calibration_error=None,
                    heldout_error=errors.get((matrix.block, matrix.name)),
                )
                for matrix in last.matrices
            ),
            {
                **seconds,
                **self.clock.seconds,
                "error": seconds.get("error", 0.0) + self.clock.seconds.get("error", 0.0),
            },
            tuple(self.warnings),
            last.resumed_blocks,
            last.outside,
            RecoveryReport(
                name=self.what.recovery.name,
                targets=tuple(map(str, targets)),
                steps=sum(trained.step for trained in self.trained),
                tokens=sum(trained.tokens for trained in self.trained),
                trainable=self.trainable,
                seconds=seconds["recover"],
                loss_before=tuple(trained.loss_before for trained in self.trained),
                loss_after=tuple(trained.loss_best for trained in self.trained),
                best_steps=tuple(trained.best for trained in self.trained),
                resumed=self.resumed or any(trained.resumed for trained in self.trained),
            ),
        )

    def _errors(self) -> dict[tuple[int, str], float | None]:
        """Against the dense model, on held-out text. None for sliced models: their inputs lie in another basis."""
        if not isinstance(self.sink, BlockFolder):
            return {}
        result = _under(self.source, self.sink.folder, self.source.dtype)
        if result.shape != self.source.shape:
            return {}
        with self.clock("error"):
            return heldout_errors(self.source, result, self.calibration.heldout, self.run)

    def _finished(self, folder: Path) -> bool:
        return self._same(folder / "trained.json")

    def _same(self, path: Path) -> bool:
        return _read(path).get("identity") == self.identity


def _under(source: CheckpointSource, overlay: Path | None, dtype: torch.dtype) -> CheckpointSource:
    """The same checkpoint under other blocks, in another compute dtype."""
    return CheckpointSource(source.folder, dtype=dtype, device=source.device, overlay=overlay)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _restored(stored: Mapping[str, Any]) -> PruneReport:
    outside = stored["outside"]
    return PruneReport(
        tuple(MatrixReport(**matrix) for matrix in stored["matrices"]),
        dict(stored["seconds"]),
        tuple(stored["warnings"]),
        int(stored["resumed_blocks"]),
        None if outside is None else Outside(**outside),
    )


def _write(pruned: CheckpointSource, trained: dict[str, Tensor], places: Places, sink: BlockSink) -> None:
    """Every block with its trained tensors, in the dtypes it was stored in; the rest as the pruner left it."""
    outer = {}
    for name in pruned.family.outer_tensors(pruned.shape):
        if name in trained:
            outer[name] = trained.pop(name).to("cpu", pruned.raw_outer(name).dtype)
    if pruned.overlay is None:
        raise ValueError("a pruned model lies over the dense one")
    _carry_outer(pruned.overlay, sink, outer)
    for index in range(pruned.shape.blocks):
        prefix = pruned.family.block_prefix(index)
        block = dict(pruned.raw_block(index))
        for name, tensor in block.items():
            full = prefix + name
            if full in trained:
                block[name] = trained.pop(full).to("cpu", tensor.dtype).contiguous()
                mask = places.matrices.get(full)
                check_zeros(full, block[name], None if mask is None else mask.cpu())
        sink.put(index, block)


def _carry_outer(folder: Path, sink: BlockSink, changed: Mapping[str, Tensor]) -> None:
    """Put what ``folder`` holds outside the blocks into ``sink``, with ``changed`` in its place; and its config."""
    left = dict(changed)
    for path in sorted(folder.glob("outer-*.safetensors")):
        tensors = load_file(path)
        sink.put_outer({name: left.pop(name, tensor) for name, tensor in tensors.items()})
    if left:
        sink.put_outer(left)
    if (folder / "config.json").exists():
        sink.put_config(_read(folder / "config.json"))
