"""Perplexity, divergence from the dense model and flip rate, streamed block by block over fixed windows.

Perplexity is that of the one-shot pruning papers: disjoint windows, the mean loss of each over its length - 1
predicted tokens, exp of the mean over windows (arXiv 2301.00774, section 4.1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from bench.evaluate.vocabulary import Head, row_figures
from bench.plan.machine import scoring_tokens
from methods.families.base import run_block
from methods.interface import BlockSource, Run, batches
from methods.stream.ahead import BlocksAhead
from methods.stream.heap import give_back
from methods.stream.hidden import HiddenStates
from methods.stream.sink import write_json, write_tensors
from methods.stream.stopwatch import Stopwatch

__all__ = ["BlockChange", "DenseStates", "Scores", "score"]

# Blocks read before the heap is trimmed: after each small one it would cost a tenth of the time.
_WALKED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BlockChange:
    """Medians over tokens of norms relative to those of the block's input: of output less input (None where the two lie
    in different bases, in sliced models) and of the output. NaN where a state is not finite.
    """

    change: float | None
    norm: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-window means over predicted tokens, float64 [windows]: loss in nat/token, KL to dense, share of changed argmax.

    ``divergence`` and ``flips`` are None for the dense model itself. ``predicted`` counts predicted tokens of
    all windows.
    """

    loss: NDArray[np.float64]
    divergence: NDArray[np.float64] | None
    flips: NDArray[np.float64] | None
    predicted: int
    tokens: int
    blocks: tuple[BlockChange, ...]
    """What each block does to the states of the first batch of windows."""
    seconds: dict[str, float]
    """``forward`` and ``loss``: what scoring takes; ``divergence``: the comparison with the dense model."""

    @property
    def nll(self) -> float:
        """Mean loss, nat/token."""
        return float(self.loss.mean())

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinity where that overflows."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


class DenseStates:
    """What the dense model's head reads for every predicted token, kept for the divergence of pruned models.

    States, not logits: a vocabulary is a hundred times wider than a model. One file a batch of windows under
    ``folder``, mapped when read, so that neither side holds more than a batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._list = folder / "windows.json"
        self._part: tuple[range, Tensor] | None = None

    def exists(self) -> bool:
        """Whether all batches are there."""
        return self._list.is_file()

    def put(self, first: int, states: Tensor) -> None:
        """Keep states [windows, length - 1, width] of the windows from ``first`` on. Raises MachineError."""
        write_tensors(self.folder / f"windows-{first:08d}.safetensors", {"states": states})

    def finish(self, starts: list[int], loss: float) -> None:
        """All batches are written; they start at these windows, their mean loss is ``loss``. Raises MachineError."""
        if math.isfinite(loss):
            write_json(self.folder / "loss.json", loss)
        write_json(self._list, starts)

    def loss(self) -> float | None:
        """The dense model's mean loss, nat/token; None where it was not finite."""
        file = self.folder / "loss.json"
        return float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def __getitem__(self, window: int) -> Tensor:
        """States [length - 1, width] of a window, backed by the file."""
        if self._part is None or window not in self._part[0]:
            starts = json.loads(self._list.read_text(encoding="utf-8"))
            first = max(start for start in starts if start <= window)
            path = self.folder / f"windows-{first:08d}.safetensors"
            with safe_open(str(path), framework="pt", device="cpu") as file:
                states: Tensor = file.get_tensor("states")
            self._part = (range(first, first + len(states)), states)
        return self._part[1][window - self._part[0].start]


@torch.inference_mode()
def score(
    source: BlockSource,
    windows: Tensor,
    run: Run,
    *,
    dense: BlockSource | None = None,
    dense_states: DenseStates | None = None,
) -> Scores:
    """Score windows [windows, length] int64 under ``source``.

    With ``dense``, ``dense_states`` (made by an earlier call on the dense model) gives divergence and flips;
    without, this is the dense model, whose states are kept there. One block is in memory at a time, hidden states
    within the budget of ``run`` or on disk under its ``work``, and never more than a tile of the vocabulary's logits.
    Raises CheckpointError, MachineError.
    """
    count, length = windows.shape
    clock = Stopwatch(source.device)
    loss = np.full(count, np.nan)
    divergence, flips = np.full(count, np.nan), np.full(count, np.nan)
    reference = dense_states if dense is not None else None
    starts: list[int] = []
    changes: list[BlockChange] = []
    sections = list(_sections(source, count, length, run))
    run.observer.phase("perplexity", len(sections) * source.shape.blocks + count)
    done = 0
    for section in sections:
        hidden = HiddenStates(
            (section.stop - section.start, length, source.shape.width), source.dtype, source.device, run
        )
        for _ in _forward(source, windows[section], hidden, run, clock, changes):
            done += 1
            run.observer.step(done)
        # made only now: beside a block the tables would be the peak
        scorer = _Scorer(source, dense, clock)
        for part in batches(hidden.windows, length, _batch(source, run)):
            with clock("loss"):
                states = source.family.finish(source.outer, source.config, hidden.get(part)[:, :-1])
            here = range(section.start + part.start, section.start + part.start + states.shape[0])
            against = None if reference is None else torch.stack([reference[window] for window in here])
            figures = scorer(states, windows[here.start : here.stop, 1:], against)
            loss[here], divergence[here], flips[here] = figures
            if dense is None and dense_states is not None:
                starts.append(section.start + part.start)
                dense_states.put(starts[-1], states)
            done += states.shape[0]
            run.observer.step(done)
        hidden.close()
        del scorer
    if starts and dense_states is not None:
        dense_states.finish(starts, float(loss.mean()))
    pruned = reference is not None
    return Scores(
        loss,
        divergence if pruned else None,
        flips if pruned else None,
        predicted=count * (length - 1),
        tokens=count * length,
        blocks=tuple(changes),
        seconds=clock.seconds,
    )


def _batch(source: BlockSource, run: Run) -> int:
    return scoring_tokens(run.batch_tokens, on_cuda=source.device.type == "cuda")


def _sections(source: BlockSource, windows: int, length: int, run: Run) -> Iterator[slice]:
    """All windows at once, whose hidden states lie on disk where the budget is too small for them; without a folder
    to put them in, runs of windows that fit the budget, each of which walks all blocks again.
    """
    size = run.hidden_budget // max(1, length * source.shape.width * source.dtype.itemsize)
    size = max(1, windows if run.work is not None else size)
    for start in range(0, windows, size):
        yield slice(start, min(windows, start + size))


def _forward(
    source: BlockSource,
    tokens: Tensor,
    hidden: HiddenStates,
    run: Run,
    clock: Stopwatch,
    changes: list[BlockChange],
) -> Iterator[int]:
    """Fill ``hidden`` with the last block's outputs, block by block; each block's change is put to ``changes`` once."""
    length = tokens.shape[1]
    parts = list(batches(len(tokens), length, _batch(source, run)))
    like = torch.empty(0, dtype=source.dtype, device=source.device)
    arguments = {
        size: source.family.arguments(source.config, None, size, length, like)
        for size in {part.stop - part.start for part in parts}
    }
    stages = source.family.stages(source.config)
    walked = 0
    with clock("forward"):
        for part in parts:
            ids = tokens[part].to(source.device)
            hidden.put(part, source.family.embed(source.outer, source.config, ids, None))
    with BlocksAhead(source, convert=run.prefetch) as ahead:
        for index in range(source.shape.blocks):
            with clock("forward"):
                block, _ = ahead.take(index)
                for part in parts:
                    given = arguments[part.stop - part.start]
                    before = hidden.get(part)
                    after = run_block(stages, block, before, given)
                    if len(changes) == index:
                        changes.append(_change(before, after, sliced=source.shape.slices is not None))
                    hidden.put(part, after)
            walked += sum(tensor.nbytes for tensor in block.values())
            del block
            if walked >= _WALKED_BYTES:
                walked = 0
                give_back()
            yield index


def _change(before: Tensor, after: Tensor, *, sliced: bool) -> BlockChange:
    """Of states [windows, length, width]; the first window is enough to see a block that does nothing."""
    first, last = before[0].float(), after[0].float()
    norms = first.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    norm = float((last.norm(dim=-1) / norms).median())
    if not bool(torch.isfinite(last).all()):
        return BlockChange(None if sliced else math.nan, math.nan)
    change = None if sliced else float(((last - first).norm(dim=-1) / norms).median())
    return BlockChange(change, norm)


class _Scorer:
    """Loss, divergence and flips of windows, each a mean over its predicted tokens."""

    def __init__(self, source: BlockSource, dense: BlockSource | None, clock: Stopwatch) -> None:
        self.clock = clock
        self.head = self.dense_head = _head(source)
        if dense is not None and not _one_head(source, dense):
            self.dense_head = _head(dense)

    def __call__(self, states: Tensor, targets: Tensor, dense: Tensor | None) -> NDArray[np.float64]:
        """[3, windows] for states [windows, tokens, width] and targets [windows, tokens]; NaN where there is no ``dense``."""
        windows, device = states.shape[0], states.device
        against = None
        if dense is not None:
            against = (
                dense.flatten(0, 1).to(device=device, dtype=self.dense_head.weight.dtype),
                self.dense_head,
            )
        aims = targets.flatten().to(device)
        found = row_figures(states.flatten(0, 1), aims, self.head, self.clock, against)
        means = np.full((3, windows), np.nan)
        for place, rows in enumerate((found.loss, found.divergence, found.flips)):
            if rows is not None:
                means[place] = rows.view(windows, -1).mean(1).cpu().numpy()
        # rounding can leave a hair below zero; NaN stays NaN
        means[1] = np.maximum(means[1], 0.0)
        return means


def _head(source: BlockSource) -> Head:
    family = source.family
    return Head(family.head(source.outer, source.config), family.head_bias(source.outer, source.config))


def _one_head(source: BlockSource, dense: BlockSource) -> bool:
    """Whether both models read the same output matrix, bit for bit; compared as stored, on mapped pages."""
    if source.shape.slices is not None or dense.shape.slices is not None or source.dtype != dense.dtype:
        return False
    first, second = _stored_head(source), _stored_head(dense)
    return first.dtype == second.dtype and torch.equal(first, second)


def _stored_head(source: BlockSource) -> Tensor:
    residual = source.family.residual
    return source.raw_outer(residual.tables[0] if source.shape.tied else f"{residual.head}.weight")
