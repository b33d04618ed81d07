"""One magnitude threshold over all prunable weights of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.interface import BlockSource, Calibration, Run
from methods.layerwise.rule import Budget
from methods.layerwise.select import round_half_up
from methods.target import Target

__all__ = ["Global", "global_threshold"]

_HALF = 1 << 16


@dataclass(frozen=True, slots=True)
class Global:
    """Counts per matrix such that the removed weights are exactly the smallest of all that are selected.

    Equal magnitudes at the threshold go by block, matrix and index. Three passes over the weights, one block
    in memory.
    """

    name: str = "global"
    needs_calibration: bool = False
    patterns: bool = False
    selects: bool = True

    def __call__(
        self, source: BlockSource, calibration: Calibration | None, target: Target, run: Run
    ) -> Mapping[tuple[int, str], Budget]:
        """One budget per selected (block, matrix name); they add up to round(share · all of these)."""
        total = round_half_up(target.amount * sum(matrix.size for _, matrix in run.selected(source)))
        run.observer.phase("allocate", 3 * source.shape.blocks)
        threshold, below = global_threshold(source, total, run)
        budgets: dict[tuple[int, str], Budget] = {}
        ties = total - below
        for index, name, bits in _bit_patterns(source, run):
            less = int((bits < threshold).sum())
            here = min(ties, int((bits == threshold).sum()))
            ties -= here
            budgets[index, name] = Budget(remove=less + here)
            run.observer.step(2 * source.shape.blocks + index + 1)
        return budgets


def global_threshold(source: BlockSource, count: int, run: Run) -> tuple[int, int]:
    """(bit pattern of the ``count``-th smallest |w| as int32, how many weights lie below it); exact, by two histograms.

    For non-negative float32 the order of bit patterns is the order of values.
    """
    upper = torch.zeros(_HALF, dtype=torch.int64)
    for index, _, bits in _bit_patterns(source, run):
        upper += torch.bincount(bits >> 16, minlength=_HALF).cpu()
        run.observer.step(index + 1)
    high, before = _bin_of(upper, count)
    lower = torch.zeros(_HALF, dtype=torch.int64)
    for index, _, bits in _bit_patterns(source, run):
        lower += torch.bincount((bits[bits >> 16 == high] & (_HALF - 1)), minlength=_HALF).cpu()
        run.observer.step(source.shape.blocks + index + 1)
    low, inside = _bin_of(lower, count - before)
    return (high << 16) | low, before + inside


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the count-th smallest entry, and how many entries lie in lower bins."""
    sums = histogram.cumsum(0)
    found = int((sums < count).sum())
    return found, int(sums[found - 1]) if found else 0


def _bit_patterns(source: BlockSource, run: Run) -> Iterator[tuple[int, str, Tensor]]:
    for index, selected in groupby(run.selected(source), key=itemgetter(0)):
        block = source.raw_block(index)
        for _, matrix in selected:
            weight = block[f"{matrix.name}.weight"].to(source.device, torch.float32).abs().flatten()
            if not bool(torch.isfinite(weight).all()):
                raise NonFiniteError(
                    f"block {index} {matrix.name}: its weights hold NaN or infinity; check the checkpoint"
                )
            yield index, matrix.name, weight.view(torch.int32)
