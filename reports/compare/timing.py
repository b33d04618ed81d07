"""Whether times differ by more than chance: repeats of one row, or single times of many cells taken together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reports.statistics import CONFIDENCE, Difference

__all__ = ["FEWEST_CELLS", "FEWEST_REPEATS", "of_cells", "of_repeats"]

FEWEST_REPEATS: Final = 3
FEWEST_CELLS: Final = 3
"""Single times of fewer cells than this are no sample."""


def of_repeats(base: NDArray[np.float64], new: NDArray[np.float64]) -> Difference:
    """NEW - BASE of the logarithms of positive times, float64 [repeats] each: Welch's t-test, unequal variances."""
    from scipy import stats

    first, second = np.log(new), np.log(base)
    mean = float(first.mean() - second.mean())
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return _certain(mean, len(first))
    found: Any = stats.ttest_ind(first, second, equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    return Difference(mean, float(interval.low), float(interval.high), float(found.pvalue), 1, len(first))


def of_cells(logarithms: Sequence[float]) -> Difference:
    """The mean of log(NEW / BASE), one a cell: Student's t-test against no change."""
    from scipy import stats

    mean = math.fsum(logarithms) / len(logarithms)
    if max(logarithms) == min(logarithms):
        return _certain(mean, len(logarithms))
    found: Any = stats.ttest_1samp(list(logarithms), 0.0)
    interval = found.confidence_interval(CONFIDENCE)
    return Difference(
        mean, float(interval.low), float(interval.high), float(found.pvalue), 1, len(logarithms)
    )


def _certain(mean: float, units: int) -> Difference:
    """Values without any spread leave nothing to test: they are equal, or they are not."""
    return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, 1, units)
