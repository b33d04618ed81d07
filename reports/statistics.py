"""The little statistics a comparison needs: means over seeds, their intervals, ratios to the dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """The mean of one figure over seeds; `half_width` is that of its 95 % interval, None without one."""

    mean: float | None
    half_width: float | None
    count: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval; the mean itself where there is none."""
        return None if self.mean is None else self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float | None:
        """Upper end of the interval; the mean itself where there is none."""
        return None if self.mean is None else self.mean + (self.half_width or 0.0)


def summarise(values: Sequence[float | None]) -> Summary:
    """Mean and Student-t interval of independent runs; one value stands for itself, without an interval.

    A missing value makes the mean missing, a value that is not finite makes it not finite: neither is left
    out quietly.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Summary(None, None, len(values))
    if len(known) == 1:
        return Summary(known[0], None, 1)
    if not all(map(math.isfinite, known)):
        return Summary(math.nan if any(value != value for value in known) else sum(known), None, len(known))
    from scipy import stats

    try:
        mean = math.fsum(known) / len(known)
        variance = math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1)
    except OverflowError:
        return Summary(math.inf, None, len(known))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
    # Counts that agree between seeds stay whole numbers.
    centre = known[0] if all(value == known[0] for value in known) else mean
    return Summary(centre, reach * math.sqrt(variance / len(known)), len(known))


def ratio(value: float | None, dense: float | None) -> float | None:
    """`value / dense`, None where either is missing or the dense figure is not a positive finite number."""
    if value is None or dense is None or not (0 < dense < math.inf):
        return None
    return value / dense
