"""One pass over a model, one block in memory: gather moments, solve, go on with the pruned block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import (
    Block,
    BlockSink,
    BlockSource,
    Calibration,
    Matrix,
    MatrixReport,
    PruneReport,
    Run,
)
from methods.layerwise.rule import Solution
from methods.moments import Moments, Statistic
from methods.quantise.stored import grid_tensors
from methods.stream.ahead import BlocksAhead
from methods.stream.errors import OutputErrors
from methods.stream.heap import give_back
from methods.stream.resume import ResumePoint
from methods.stream.shares import cut
from methods.stream.stopwatch import Stopwatch
from methods.stream.windows import Part, WindowStates

__all__ = ["SCHEDULES", "Solver", "walk"]

SCHEDULES = ("sequential", "blockwise")

Solver = Callable[[int, Matrix, Tensor, Moments | None, torch.dtype], Solution]
"""(block, matrix, weight [rows, columns] float32 that may be overwritten, moments, stored dtype) to a solution."""


@dataclass(slots=True)
class _Stage:
    number: int
    matrices: tuple[Matrix, ...]
    moments: Moments | None


class _Walk:
    def __init__(
        self, source: BlockSource, calibration: Calibration, solver: Solver, run: Run, *, needs: Statistic
    ) -> None:
        self.source = source
        self.solver = solver
        self.run = run
        self.needs = needs
        drawn = calibration.tokens if needs else calibration.tokens[:0]
        self.workers = run.workers if len(drawn) else ()
        own, *others = cut(len(drawn), len(calibration.heldout), 1 + len(self.workers))
        for worker, share in zip(self.workers, others, strict=True):
            worker.begin(drawn[share], needs)
        drawn = drawn[own]
        self.tokens = torch.cat([drawn, calibration.heldout]) if len(drawn) else calibration.heldout
        self.states = WindowStates(source, self.tokens, len(drawn), run)
        self.matrices = {matrix.name: matrix for matrix in source.family.matrices(source.shape)}
        self.selected = {(index, matrix.name) for index, matrix in run.selected(source)}
        self.clock = Stopwatch(source.device)
        self.reports: list[MatrixReport] = []
        self.finished: Block = {}

    def prune_block(self, index: int, block: Block, raw: Block) -> None:
        """Replace the block's matrices by pruned ones and its input states by its outputs."""
        for worker in self.workers:
            worker.enter(index)
        self.states.enter()
        self.finished = dict(raw)
        if self.run.schedule == "blockwise":
            self._blockwise(index, block, raw)
        else:
            self._sequential(index, block, raw)
        if index + 1 < self.source.shape.blocks:
            for part in self.states.parts:
                with self.clock(_phase(part)):
                    self.states.leave(block, part)

    def _sequential(self, index: int, block: Block, raw: Block) -> None:
        self._set_going(index, -1)
        for stage in self._stages(index):
            for part in self.states.parts:
                with self.clock(_phase(part)):
                    inputs = self.states.inputs(block, part, stage.number)
                self._gather(stage, inputs, part.counted)
                del inputs
            self._take_in(stage)
            give_back()
            first = len(self.reports)
            solved = {f"{m.name}.weight": self._solve(index, m, raw, stage.moments) for m in stage.matrices}
            block.update(solved)
            if stage.moments is not None:
                self._hand_on(index, solved)
                self._set_going(index, stage.number)
            self._heldout(first, raw, block, stage)

    def _blockwise(self, index: int, block: Block, raw: Block) -> None:
        stages = list(self._stages(index))
        shared = tuple(stage.number for stage in stages if stage.moments is not None)
        for worker in self.workers if shared else ():
            worker.gather(shared, dense=True)
        if self.needs:
            self._gather_dense(stages, block)
        for stage in stages:
            self._take_in(stage)
        give_back()
        pruned: Block = {}
        for stage in stages:
            for matrix in stage.matrices:
                pruned[f"{matrix.name}.weight"] = self._solve(index, matrix, raw, stage.moments)
            stage.moments = None
        self._hand_on(index, pruned)
        self._set_going(index, len(stages))
        first = len(self.reports) - len(pruned)
        with self.clock("error"):
            for stage in stages:
                errors = self._errors(stage, raw, pruned)
                for part in self.states.parts:
                    if not part.counted:
                        for number, inputs in enumerate(self.states.dense_inputs(block, part)):
                            if number == stage.number:
                                errors.add(inputs)
                                break
                self._report_errors(first, errors)
                first += len(stage.matrices)
        block.update(pruned)

    def _set_going(self, index: int, stage: int) -> None:
        """Have the workers do what comes after a stage: gather at the next that is pruned, or else finish the block.

        They are told before held-out errors are measured here, and so work meanwhile.
        """
        later = [
            n for n, at in enumerate(self.states.stages) if n > stage and self._gathered(index, at.linears)
        ]
        for worker in self.workers:
            if later:
                worker.gather((later[0],), dense=False)
            elif index + 1 < self.source.shape.blocks:
                worker.leave()

    def _take_in(self, stage: _Stage) -> None:
        """Add what the workers gathered to what was gathered here, in their order, whoever was done first."""
        if stage.moments is not None:
            with self.clock("moments"):
                for worker in self.workers:
                    counts, pieces = worker.sums(stage.number)
                    stage.moments.absorb(pieces, counts)

    def _hand_on(self, index: int, solved: Block) -> None:
        """Have the workers go on with the pruned weights; the others they have."""
        pruned = {f"{name}.weight" for block, name in self.selected if block == index}
        changed = {name: weight for name, weight in solved.items() if name in pruned}
        for worker in self.workers if changed else ():
            worker.replace(changed)

    def _stages(self, index: int) -> Iterator[_Stage]:
        for number, stage in enumerate(self.states.stages):
            matrices = tuple(self.matrices[name] for name in stage.linears)
            give_back()
            # without a name here: the moments are gone once the stage drops them
            yield _Stage(number, matrices, self._moments(index, stage.linears, matrices[0].columns))

    def _moments(self, index: int, linears: tuple[str, ...], columns: int) -> Moments | None:
        if not self._gathered(index, linears):
            return None
        where = f"block {index} {'+'.join(linears)}"
        return Moments(self.needs, columns, self.run.hessian_dtype, self.source.device, where)

    def _gathered(self, index: int, linears: tuple[str, ...]) -> bool:
        """Whether inputs of these linears are looked at."""
        return bool(self.needs) and any((index, name) in self.selected for name in linears)

    def _gather(self, stage: _Stage, inputs: Tensor, counted: bool) -> None:
        if counted and stage.moments is not None:
            with self.clock("moments"):
                stage.moments.add(inputs)

    def _gather_dense(self, stages: list[_Stage], block: Block) -> None:
        for part in self.states.parts:
            if part.counted:
                for stage, inputs in zip(stages, self.states.dense_inputs(block, part), strict=True):
                    self._gather(stage, inputs, counted=True)

    def _solve(self, index: int, matrix: Matrix, raw: Block, moments: Moments | None) -> Tensor:
        stored = raw[f"{matrix.name}.weight"]
        if (index, matrix.name) not in self.selected:
            return self._keep(index, matrix, stored)
        dense = stored.to(device=self.source.device, dtype=torch.float32, copy=True)
        began = time.perf_counter()
        with self.clock("solve"):
            solution = self.solver(index, matrix, dense, moments, stored.dtype)
            # what goes on is what is stored: the next layers see the rounded weight
            weight = solution.weight.to(stored.dtype)
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(
                f"block {index} {matrix.name}: a pruned weight is NaN or beyond {stored.dtype}; "
                "raise the damping or store the checkpoint in a wider dtype"
            )
        seconds = time.perf_counter() - began
        self.finished[f"{matrix.name}.weight"] = weight
        if solution.grid is not None:
            self.finished |= grid_tensors(matrix.name, solution.grid)
        weight = weight.to(self.source.dtype)
        factor, removed = solution.factor, int(solution.mask.count_nonzero())
        del dense, solution
        error = None
        if moments is not None and Statistic.GRAM in self.needs:
            give_back()
            with self.clock("error"):
                original = stored.to(self.source.device)
                whole = moments.gram.energy(original)
                error = moments.gram.energy(original, weight) / whole if whole > 0 else 0.0
        self.reports.append(
            MatrixReport(
                block=index,
                name=matrix.name,
                rows=matrix.rows,
                columns=matrix.columns,
                removed=removed,
                calibration_error=error,
                heldout_error=None,
                damping=factor.damping if factor else None,
                dead_columns=moments.dead if moments is not None else 0,
                escalations=factor.escalations if factor else 0,
                seconds=seconds,
            )
        )
        if factor is not None and factor.escalations:
            self.run.observer.warning(
                f"block {index} {matrix.name}: the Hessian needed damping {factor.damping:g} of its mean diagonal"
            )
        return weight

    def _keep(self, index: int, matrix: Matrix, stored: Tensor) -> Tensor:
        """A matrix outside the selection, as it was."""
        self.reports.append(
            MatrixReport(
                block=index,
                name=matrix.name,
                rows=matrix.rows,
                columns=matrix.columns,
                removed=0,
                calibration_error=0.0 if Statistic.GRAM in self.needs else None,
                heldout_error=None,
                damping=None,
                dead_columns=0,
                escalations=0,
                seconds=0.0,
            )
        )
        return stored.to(device=self.source.device, dtype=self.source.dtype, copy=True)

    def _heldout(self, first: int, raw: Block, block: Block, stage: _Stage) -> None:
        stage.moments = None  # the Hessian's memory is not needed any more
        with self.clock("error"):
            errors = self._errors(stage, raw, block)
            for part in self.states.parts:
                if not part.counted:
                    errors.add(self.states.inputs(block, part, stage.number))
            self._report_errors(first, errors)

    def _errors(self, stage: _Stage, raw: Block, pruned: Block) -> OutputErrors:
        pairs = []
        for matrix in stage.matrices:
            name = f"{matrix.name}.weight"
            dense = raw[name].to(device=self.source.device, dtype=torch.float32)
            pairs.append((dense, dense - pruned[name].float()))
        return OutputErrors(pairs)

    def _report_errors(self, first: int, errors: OutputErrors) -> None:
        for offset, error in enumerate(errors.relative()):
            report = self.reports[first + offset]
            fields = {name: getattr(report, name) for name in MatrixReport.__slots__}
            self.reports[first + offset] = MatrixReport(**{**fields, "heldout_error": error})


def _phase(part: Part) -> str:
    """Under which name a batch's forward pass is timed: held-out text serves the error figures only."""
    return "forward" if part.counted else "error"


@torch.no_grad()
def walk(
    source: BlockSource,
    calibration: Calibration,
    solver: Solver,
    sink: BlockSink,
    run: Run,
    *,
    needs: Statistic,
) -> PruneReport:
    """Prune every block of ``source`` into ``sink``; goes on from ``run.work`` where a killed walk left off.

    ``sequential`` prunes in data-flow order with one forward pass: each matrix sees inputs made by pruned
    weights before it. ``blockwise`` is the published SparseGPT code's schedule: all Hessians of a block from
    its dense weights, then a second forward. ``needs``: what is gathered of the inputs; the calibration error
    is known only where that holds the Gram matrix. Matrices outside ``run.layers`` are kept as
    they are. With ``run.workers`` each of them passes a share of the calibration windows, and its sums are added to
    those made here: equal to one walk's but for the order of additions. Raises NonFiniteError, HessianError,
    CheckpointError, MachineError.
    """
    pruning = _Walk(source, calibration, solver, run, needs=needs)
    point = ResumePoint(run.work, run.identity) if run.work is not None else None
    progress = point.load() if point else None
    blocks = source.shape.blocks
    if progress is not None and all(index in sink for index in range(progress.next)):
        start = progress.next
        if start < blocks:
            pruning.states.hidden.put(slice(None), progress.hidden)
            for worker, kept in zip(pruning.workers, progress.others, strict=True):
                worker.restore(kept())
        pruning.reports.extend(progress.reports)
        pruning.clock = Stopwatch(source.device, progress.seconds)
    else:
        start = 0
        for worker in pruning.workers:
            worker.embed()
        with pruning.clock("forward"):
            pruning.states.embed(pruning.tokens)
    del progress
    run.observer.phase("prune", blocks)
    run.observer.step(start, f"resumed after block {start - 1}" if start else "")
    with BlocksAhead(source, start, convert=run.prefetch, check=True) as ahead:
        for index in range(start, blocks):
            with pruning.clock("read"):
                block, raw = ahead.take(index)
            pruning.prune_block(index, block, raw)
            with pruning.clock("write"):
                sink.put(index, pruning.finished)
                if point is not None:
                    last = index + 1 == blocks
                    states = torch.empty(0) if last else pruning.states.hidden.whole()
                    others = () if last else (worker.states() for worker in pruning.workers)
                    point.save(index + 1, states, pruning.reports, pruning.clock.seconds, others=others)
            # nothing of this block may lie beside the next ones
            del block, raw
            pruning.finished = {}
            give_back()
            run.observer.step(index + 1, _note(pruning.reports, index))
    pruning.states.close()
    return PruneReport(tuple(pruning.reports), _seconds(pruning.clock.seconds), resumed_blocks=start)


def _seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds[name] for name in sorted(seconds)}


def _note(reports: list[MatrixReport], index: int) -> str:
    errors = [
        report.heldout_error
        for report in reports
        if report.block == index and report.heldout_error is not None
    ]
    return f"held-out error {sum(errors) / len(errors):.4f}" if errors else ""
