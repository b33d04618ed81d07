"""llm-compressor as a ``Pruner``: its own modifiers, on our tokens, into our sink."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.errors import OutsideError, UnsupportedTarget, UserError
from methods.external.llmcompressor.exchange import Exchange, Result
from methods.external.llmcompressor.interpreter import environment, find, versions
from methods.external.llmcompressor.process import run_worker
from methods.families import family_of
from methods.interface import (
    BlockSink,
    BlockSource,
    Calibration,
    Matrix,
    ModelShape,
    Outside,
    PruneReport,
    Run,
)
from methods.layerwise.rule import Solution
from methods.moments import Moments, Statistic
from methods.stream.stopwatch import Stopwatch
from methods.stream.walk import walk
from methods.target import Target

__all__ = ["LLMCompressor", "magnitude", "sparsegpt", "wanda"]

_SCHEDULE = "blockwise: all Hessians of a block from its dense weights, then a second forward"


@dataclass(frozen=True, slots=True)
class LLMCompressor:
    """Runs one of llm-compressor's modifiers in another interpreter, in float32 on the CPU.

    ``modifier``: sparsegpt, wanda or magnitude. ``python``: the interpreter, or empty for what
    BENCH_LLMCOMPRESSOR_PYTHON names. ``batch``: windows per forward pass. ``silence``: seconds without a
    sign of life after which it is ended. Its schedule is its own, whatever the run's; budgets are its own
    too (SparseGPT removes one weight more per block of columns, Wanda rounds each row down), and are
    reported as counted in what it gives back, zeros that were there before included. Raises UserError for
    an interpreter that is given and is no program.
    """

    modifier: str
    python: str = ""
    batch: int = 1
    silence: int = 3600
    percdamp: float = 0.01
    blocksize: int = 128

    def __post_init__(self) -> None:
        if self.python.strip():
            find(self.python)

    @property
    def name(self) -> str:
        """As in the registry."""
        return f"llmcompressor-{self.modifier}"

    @property
    def needs_calibration(self) -> bool:
        """Whether results depend on calibration text."""
        return self.modifier != "magnitude"

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """Why this target cannot be reached on this model, or by this machine, or None."""
        if target.kind not in ("unstructured", "nm"):
            return f"{self.name} removes weights in place and cannot reach {target}; use a share (50%) or N:M (2:4)"
        if target.bits:
            return f"{self.name} does not quantise; ask for {str(target).split('+')[0]} without +{target.bits}bit"
        if target.kind == "nm":
            if self.modifier == "magnitude":
                return f"llm-compressor's magnitude pruning has no N:M patterns such as {target}; use a share (50%)"
            for matrix in family_of(shape).matrices(shape):
                if matrix.columns % target.group:
                    return (
                        f"{target} needs widths divisible by {target.group}; "
                        f"{matrix.name} has {matrix.columns} input columns"
                    )
        try:
            versions(find(self.python))
        except UserError as error:
            return str(error)
        return None

    def prune(
        self, source: BlockSource, calibration: Calibration | None, target: Target, sink: BlockSink, run: Run
    ) -> PruneReport:
        """Prune every block. Raises UserError, UnsupportedTarget, OutsideError, NonFiniteError, CheckpointError,
        MachineError.
        """
        reason = self.refuse(source.shape, target)
        if reason is not None:
            raise UnsupportedTarget(reason)
        if source.device.type != "cpu":
            raise UserError(f"{self.name} runs on the CPU only, not on {source.device}; add --device cpu")
        if source.dtype != torch.float32:
            raise UserError(
                f"{self.name} computes in float32 only, not in {str(source.dtype).removeprefix('torch.')}; "
                "add --dtype float32"
            )
        if calibration is None or (self.needs_calibration and not len(calibration.tokens)):
            raise UserError(f"{self.name} needs calibration windows")
        tokens = calibration.tokens if self.needs_calibration else calibration.tokens[:0]
        clock = Stopwatch(source.device)
        with _workspace(run) as folder:
            settings = self._settings(target, run)
            exchange = Exchange(folder, source, tokens, settings, run.identity)
            result = exchange.result()
            if result is None:
                result = self._compute(exchange, source, run, clock)
            return self._stream(exchange, result, source, calibration, sink, run, clock)

    def _settings(self, target: Target, run: Run) -> dict[str, Any]:
        """All that decides the result, versions included; the worker reads them as the job."""
        group = target.group or 1
        return {
            "modifier": self.modifier,
            "sparsity": float(target.amount),
            # its N counts what goes, of every M
            "mask": f"{target.group - target.keep}:{target.group}" if target.group else "0:0",
            "percdamp": self.percdamp,
            "blocksize": -(-self.blocksize // group) * group,  # groups may not straddle blocks
            "batch": self.batch,
            "seed": run.seed,
            "threads": torch.get_num_threads(),
            "versions": versions(find(self.python)),
        }

    def _compute(self, exchange: Exchange, source: BlockSource, run: Run, clock: Stopwatch) -> Result:
        with clock("read"):
            exchange.write()
        matrices = source.shape.blocks * len(source.family.matrices(source.shape))
        run_worker(
            find(self.python),
            exchange.job,
            silence=self.silence,
            environment=environment(torch.get_num_threads()),
            matrices=matrices,
            observer=run.observer,
        )
        exchange.drop_model()
        result = exchange.result()
        if result is None:
            raise OutsideError("llm-compressor ended well and left no whole result; run again")
        return result

    def _stream(
        self,
        exchange: Exchange,
        result: Result,
        source: BlockSource,
        calibration: Calibration,
        sink: BlockSink,
        run: Run,
        clock: Stopwatch,
    ) -> PruneReport:
        """Walk over the result as over any method's, for held-out errors, stored dtypes, checks and resume."""

        def given(
            index: int, matrix: Matrix, dense: Tensor, _moments: Moments | None, _stored: torch.dtype
        ) -> Solution:
            weight = exchange.weight(index, matrix.name, (matrix.rows, matrix.columns))
            return Solution(weight.to(dense.device), (weight == 0).to(dense.device))

        report = walk(source, calibration, given, sink, run, needs=Statistic.NONE)
        taken = report.seconds
        seconds = {
            "solve": result.seconds["prune"],
            "read": clock.seconds.get("read", 0.0) + taken.get("read", 0.0),
            "write": taken.get("write", 0.0),
            "error": sum(taken.get(name, 0.0) for name in ("forward", "solve", "error")),
            **{f"outside_{phase}": result.seconds[phase] for phase in ("import", "load", "write")},
        }
        prefix = source.family.block_prefix
        took = result.matrix_seconds
        matrices = tuple(replace(m, seconds=took.get(prefix(m.block) + m.name, 0.0)) for m in report.matrices)
        return replace(
            report,
            matrices=matrices,
            seconds=seconds,
            warnings=(*report.warnings, *_brief(result.warnings)),
            outside=Outside(
                "llm-compressor",
                result.versions,
                result.base_memory,
                result.peak_memory,
                {"schedule": _SCHEDULE},
            ),
        )


def _brief(warnings: tuple[str, ...]) -> tuple[str, ...]:
    """The first warnings of each kind, and how many more there were: a model has hundreds of matrices."""
    shown = tuple(f"llm-compressor: {text[:300]}" for text in warnings[:5])
    return (*shown, f"llm-compressor: {len(warnings) - 5} more warnings") if len(warnings) > 5 else shown


@contextmanager
def _workspace(run: Run) -> Iterator[Path]:
    """The folder to exchange files in: the run's own, which outlives a kill, or one that goes away."""
    if run.work is not None:
        yield run.work / "llmcompressor"
        return
    with tempfile.TemporaryDirectory(prefix="prune-bench-") as folder:
        yield Path(folder) / "llmcompressor"


def sparsegpt(**parameters: Any) -> LLMCompressor:
    """llm-compressor's SparseGPT."""
    return LLMCompressor("sparsegpt", **parameters)


def wanda(**parameters: Any) -> LLMCompressor:
    """llm-compressor's Wanda."""
    return LLMCompressor("wanda", **parameters)


def magnitude(**parameters: Any) -> LLMCompressor:
    """llm-compressor's magnitude pruning."""
    return LLMCompressor("magnitude", **parameters)
