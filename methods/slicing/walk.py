"""Slicing a model in one pass, one block in memory: fold, find the next segment's basis, cut, go on with what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from methods.errors import NonFiniteError
from methods.families import family_of
from methods.families.sliced import SHORTCUTS, config_changes, root_mean_square
from methods.interface import (
    Block,
    BlockSink,
    BlockSource,
    Calibration,
    Carry,
    MatrixReport,
    PruneReport,
    Run,
    Slices,
    Sublayer,
)
from methods.moments import Gram
from methods.slicing.fuse import fuse_reading, fuse_rows, fuse_writing
from methods.slicing.outer import Outer, rounded
from methods.slicing.rotate import basis
from methods.slicing.schedule import sliced_shape
from methods.stream.hidden import HiddenStates
from methods.stream.resume import ResumePoint
from methods.stream.stopwatch import Stopwatch
from methods.stream.windows import Part, WindowStates

__all__ = ["slice_blocks"]


@torch.no_grad()
def slice_blocks(
    source: BlockSource, calibration: Calibration, slices: Slices, orientation: str, sink: BlockSink, run: Run
) -> PruneReport:
    """Slice every block of ``source`` into ``sink``, and what lies outside the blocks; resumes after the last block.

    Each segment's basis is found on the un-normalised residual stream as the already sliced part of the model
    makes it, in float64. Held-out errors: of a linear that reads the stream, that of its output on the stream cut
    by the basis just found, against the stream before that cut; of one that writes to it, the share of its output
    that the next basis does not hold. What earlier cuts did to the stream is in neither. Raises NonFiniteError, CheckpointError,
    MachineError.
    """
    slicing = _Slicing(source, calibration, slices, orientation, sink, run)
    point = ResumePoint(run.work, run.identity) if run.work is not None else None
    progress = point.load() if point else None
    blocks = source.shape.blocks
    sink.put_config(config_changes(source.config, slices))
    start = 0
    if progress is not None and all(index in sink for index in range(progress.next)):
        start = progress.next
        slicing.clock = Stopwatch(source.device, progress.seconds)
        slicing.reports.extend(progress.reports)
        if start < blocks:
            slicing.resume(progress.hidden, progress.kept)
    else:
        slicing.begin()
    del progress
    run.observer.phase("prune", blocks)
    run.observer.step(start, f"resumed after block {start - 1}" if start else "")
    for index in range(start, blocks):
        finished = slicing.block(index)
        with slicing.clock("write"):
            sink.put(index, finished)
            if point is not None:
                hidden, kept = slicing.state() if index + 1 < blocks else (torch.empty(0), {})
                point.save(index + 1, hidden, slicing.reports, slicing.clock.seconds, kept)
        del finished
        run.observer.step(index + 1)
    slicing.close()
    seconds = {name: slicing.clock.seconds[name] for name in sorted(slicing.clock.seconds)}
    return PruneReport(tuple(slicing.reports), seconds, resumed_blocks=start)


class _Fused(NamedTuple):
    """A linear with its norm folded in, float64, not yet cut."""

    weight: Tensor
    bias: Tensor | None


class _Slicing:
    """``basis`` [D, d] float64: the basis that the states of all windows lie in, d wide.

    ``lifted``: the held-out states before they were cut to it, D wide, which the errors are measured against.
    """

    def __init__(
        self,
        source: BlockSource,
        calibration: Calibration,
        slices: Slices,
        orientation: str,
        sink: BlockSink,
        run: Run,
    ) -> None:
        self.source, self.slices, self.orientation, self.sink, self.run = (
            source,
            slices,
            orientation,
            sink,
            run,
        )
        self.width = source.shape.width
        self.residual = source.family.residual
        self.eps = source.family.norm_eps(source.config)
        self.outer = Outer(source)
        self.family = family_of(sliced_shape(source.shape, slices))
        self.config = {**source.config, **config_changes(source.config, slices)}
        self.wide = torch.promote_types(source.dtype, torch.float32)
        self.clock = Stopwatch(source.device)
        self.reports: list[MatrixReport] = []
        self.counted = len(calibration.tokens)
        self.tokens = torch.cat([calibration.tokens, calibration.heldout])
        self.states = WindowStates(source, self.tokens, self.counted, run, self.family.stages(self.config))
        size = (len(calibration.heldout), self.tokens.shape[1], self.width)
        self.lifted = HiddenStates(size, self.wide, source.device, run, name="lifted")
        self.basis = torch.empty(0)

    def begin(self) -> None:
        """The first basis, from the embeddings; tables and head in it; every window's first state."""
        gram = self._gram()
        for part in self.states.parts:
            with self.clock(_phase(part)):
                tokens = self._tokens(part)
                embedded = self.source.family.embed(self.source.outer, self.source.config, tokens, None)
                whole = fuse_rows(embedded, centred=self.residual.centred).to(self.wide)
                if part.counted:
                    gram.add(whole)
                else:
                    self.lifted.put(self._heldout(part), whole)
        with self.clock("solve"):
            self.basis = self._basis(gram, self.slices.inputs(0, 0), 0, "tables", "the embeddings")
        for name in self.residual.tables:
            self._put({name: self.outer.table(name, self.basis)})
        if self._head_is_whole():
            self._put(self.outer.head(None))
        for part in self.states.parts:
            with self.clock(_phase(part)):
                self.states.hidden.put(
                    part.windows, self.family.embed(_Rows(self), self.config, self._tokens(part), None)
                )

    def resume(self, hidden: Tensor, kept: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""
        self.states.hidden.put(slice(None), hidden)
        self.lifted.put(slice(None), kept["lifted"])
        self.basis = kept["basis"].to(self.source.device)

    def state(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What the next block goes on from."""
        return self.states.hidden.whole(), {"lifted": self.lifted.whole(), "basis": self.basis}

    def close(self) -> None:
        """Forget all states."""
        self.states.close()
        self.lifted.close()

    def block(self, index: int) -> Block:
        """Cut block ``index``: its tensors as stored. States and basis become those of its output."""
        with self.clock("read"):
            raw = self._read(index)
        self.states.enter()
        finished: Block = {}
        block: Block = {}  # the same in the compute dtype
        for number, sublayer in enumerate(self.residual.sublayers):
            for name in sublayer.reads:
                self._cut_reading(index, sublayer, name, raw, finished, block)
            self._cut_writing(index, number, raw, finished, block)
            if not self._ends(index, number):
                for part in self.states.parts:
                    with self.clock(_phase(part)):
                        self.states.carry(block, part, 2 * number + 2)
        if index + 1 == self.source.shape.blocks and not self._head_is_whole():
            self._put(self.outer.head(self.basis))
        return finished

    def _read(self, index: int) -> Block:
        raw = self.source.raw_block(index)
        for name, tensor in raw.items():
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"block {index} {name}: the checkpoint holds NaN or infinity; fetch the model again"
                )
        return {name: tensor.to(self.source.device) for name, tensor in raw.items()}

    def _cut_reading(
        self, index: int, sublayer: Sublayer, name: str, raw: Block, finished: Block, block: Block
    ) -> None:
        """A linear loses input columns; its error is that of reading the cut state instead of the whole one."""
        before = self.clock.seconds.get("solve", 0.0)
        with self.clock("solve"):
            norm = (raw.get(f"{sublayer.norm}.weight"), raw.get(f"{sublayer.norm}.bias"))
            dense = raw[f"{name}.weight"]
            weight, bias = fuse_reading(dense, raw.get(f"{name}.bias"), *norm)
            self._keep(index, name, weight @ self.basis, bias, dense.dtype, finished, block)
        seconds = self.clock.seconds["solve"] - before
        error = _Error()
        with self.clock("error"):
            narrow, whole = self.basis.to(self.wide), weight.to(self.wide)
            cut = block[f"{name}.weight"].to(self.wide)
            for part in self.states.parts:
                if not part.counted:
                    states = self.lifted.get(self._heldout(part))
                    error.add(
                        root_mean_square(states, self.width, self.eps) @ whole.T,
                        root_mean_square(states @ narrow, self.width, self.eps) @ cut.T,
                    )
        self._report(index, name, dense, cut, error, seconds)

    def _cut_writing(self, index: int, number: int, raw: Block, finished: Block, block: Block) -> None:
        """A linear loses output rows; its error is what of its output the next basis does not hold."""
        name = self.residual.sublayers[number].writes
        dense = raw[f"{name}.weight"]
        before = self.clock.seconds.get("solve", 0.0)
        with self.clock("solve"):
            fused = _Fused(*fuse_writing(dense, raw.get(f"{name}.bias"), centred=self.residual.centred))
        following = self._following(index, number, block, fused)
        with self.clock("solve"):
            bias = None if fused.bias is None else following.T @ fused.bias
            self._keep(index, name, following.T @ fused.weight, bias, dense.dtype, finished, block)
            shortcut = following.T @ self.basis
            self._keep(index, SHORTCUTS[number], shortcut, None, dense.dtype, finished, block)
        seconds = self.clock.seconds["solve"] - before
        error = _Error()
        cut = block[f"{name}.weight"].to(self.wide)
        for part, carry in self._carries(block, number, counted=False):
            with self.clock("error"):
                inputs = carry[1].to(self.wide)
                lifted = inputs @ cut.T @ following.T.to(self.wide)
                error.add(inputs @ fused.weight.T.to(self.wide), lifted)
                if not self._ends(index, number):
                    self.lifted.put(self._heldout(part), self._lift(carry, fused))
        self._report(index, name, dense, cut, error, seconds)
        self.basis = following

    def _following(self, index: int, number: int, block: Block, fused: _Fused) -> Tensor:
        """The basis of the segment that a sublayer writes, from the calibration states before they are cut to it."""
        if self._ends(index, number) and self._head_is_whole():
            # nothing is cut here, so that any basis serves: the head's own saves a rounding
            return torch.eye(self.width, dtype=torch.float64, device=self.source.device)
        gram = self._gram()
        for _, carry in self._carries(block, number, counted=True):
            with self.clock("moments"):
                gram.add(self._lift(carry, fused))
        name = self.residual.sublayers[number].writes
        with self.clock("solve"):
            width = self.slices.outputs(index, number)
            return self._basis(gram, width, index, name, f"block {index} behind {name}")

    def _carries(self, block: Block, number: int, *, counted: bool) -> Iterator[tuple[Part, Carry]]:
        """Of each batch the cut state that entered a sublayer, and what its writing linear reads."""
        for part in self.states.parts:
            if part.counted == counted:
                with self.clock(_phase(part)):
                    carry = self.states.carry(block, part, 2 * number + 1)
                yield part, carry

    def _lift(self, carry: Carry, fused: _Fused) -> Tensor:
        """The residual stream behind a sublayer, D wide."""
        bias = None if fused.bias is None else fused.bias.to(self.wide)
        written = functional.linear(carry[1].to(self.wide), fused.weight.to(self.wide), bias)
        return written.add_(carry[0].to(self.wide) @ self.basis.T.to(self.wide))

    def _basis(self, gram: Gram, width: int, block: int, matrix: str, where: str) -> Tensor:
        return basis(gram.matrix, width, self.orientation, self.run.generator(block, matrix), where)

    def _gram(self) -> Gram:
        return Gram(self.width, torch.float64, self.source.device)

    def _keep(
        self,
        index: int,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        finished: Block,
        block: Block,
    ) -> None:
        """Round a linear as it will be stored: what goes on is that."""
        for kind, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                stored = rounded(f"block {index} {name}", tensor, dtype).contiguous()
                finished[f"{name}.{kind}"] = stored
                block[f"{name}.{kind}"] = stored.to(self.source.dtype)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with self.clock("write"):
            self.sink.put_outer(tensors)

    def _ends(self, index: int, number: int) -> bool:
        return index + 1 == self.source.shape.blocks and number == 1

    def _head_is_whole(self) -> bool:
        return self.slices.head == self.width

    def _tokens(self, part: Part) -> Tensor:
        return self.tokens[part.windows].to(self.source.device)

    def _heldout(self, part: Part) -> slice:
        return slice(part.windows.start - self.counted, part.windows.stop - self.counted)

    def _report(
        self, index: int, name: str, dense: Tensor, cut: Tensor, error: _Error, seconds: float
    ) -> None:
        rows, columns = dense.shape
        self.reports.append(
            MatrixReport(
                block=index,
                name=name,
                rows=rows,
                columns=columns,
                removed=dense.numel() - cut.numel(),
                calibration_error=None,
                heldout_error=error.relative(),
                damping=None,
                dead_columns=0,
                escalations=0,
                seconds=seconds,
            )
        )


class _Rows:
    """The cut tables, row by row, before they can be read back from the sink."""

    def __init__(self, slicing: _Slicing) -> None:
        self._slicing = slicing

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of a table, rounded as stored, in the compute dtype."""
        table = self._slicing.source.raw_outer(name)
        found = table.index_select(0, index.reshape(-1).to(table.device))
        cut = self._slicing.outer.rows(name, found, self._slicing.basis).to(self._slicing.source.dtype)
        return cut.view(*index.shape, cut.shape[-1])

    def tensor(self, name: str) -> Tensor:
        """Nothing else is needed to embed."""
        raise KeyError(name)


class _Error:
    """Relative squared error of outputs, summed in float64."""

    def __init__(self) -> None:
        self._change = self._whole = 0.0
        self._added = False

    def add(self, expected: Tensor, found: Tensor) -> None:
        self._added = self._added or expected.numel() > 0
        self._change += float((expected - found).square_().sum(dtype=torch.float64))
        self._whole += float(expected.square().sum(dtype=torch.float64))

    def relative(self) -> float | None:
        """None where nothing was added, 0 where outputs are zero and stay so."""
        if self._whole > 0:
            return self._change / self._whole
        return None if not self._added else 0.0 if self._change == 0 else float("inf")


def _phase(part: Part) -> str:
    """Under which name a batch's work is timed: held-out text serves the error figures only."""
    return "forward" if part.counted else "error"
