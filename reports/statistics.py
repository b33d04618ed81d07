"""The statistics of a comparison: means over seeds with their intervals, paired differences, corrected p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 4999
"""Bootstrap resamples: the smallest p-value they can give is 2 / (RESAMPLES + 1) = 0.0004."""
FEW_RESAMPLES: Final = 999
MANY_UNITS: Final = 2000
"""From so many windows or items on, `FEW_RESAMPLES` serve: their means are close to normal."""
FEWEST_UNITS: Final = 6
"""Fewer windows or items than this are no sample to resample from."""

_SEED: Final = 20230102
_BATCH: Final = 1 << 22
_TOGETHER: Final = 512


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


@dataclass(frozen=True)
class Difference:
    """The mean of A - B over the same windows or items, and over calibration seeds where both have several.

    `low` and `high` bound the 95 % interval of this difference by itself; `p` is two-sided, `adjusted` the same
    after Holm's correction for all differences judged together. `units` counts windows or items.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    units: int
    adjusted: float = math.nan

    @property
    def settled(self) -> bool:
        """Whether the difference stands after the correction."""
        return self.adjusted < 1 - CONFIDENCE


def differences(samples: Sequence[NDArray[np.float64]], families: Sequence[int] = ()) -> list[Difference]:
    """Judge paired differences A - B, float64 [seeds, units] each.

    The interval is the percentile one of scipy's bootstrap. One seed: units are drawn anew, and it covers other
    text only. Several: units and seeds are drawn anew, independently of each other (the pigeonhole bootstrap, Owen
    2007, Annals of Applied Statistics 1:386), and it covers other text and other calibration draws. From few seeds
    resampling alone would promise too much, so p is then the greater of the bootstrap's and of Student's t-test on
    the seeds' means: a difference stands only where both agree. Holm's correction (statsmodels) runs over the samples
    of one family, by the number that `families` gives each; over all without it. Draws are seeded: equal samples give
    equal results. Raises ValueError for arrays of other dimensions,
    fewer than `FEWEST_UNITS` units or values that are not finite.
    """
    import numpy as np

    for sample in samples:
        if sample.ndim != 2 or sample.shape[0] < 1 or sample.shape[1] < FEWEST_UNITS:
            raise ValueError(f"expected [seeds, {FEWEST_UNITS} or more units], found {list(sample.shape)}")
        if not np.isfinite(sample).all():
            raise ValueError("differences must be finite")
    found: dict[int, Difference] = {}
    # One pass of the bootstrap serves many samples of a shape: they share its draws.
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        shapes.setdefault(sample.shape, []).append(place)
    for shape, places in shapes.items():
        most = max(1, _TOGETHER // shape[0])
        for start in range(0, len(places), most):
            part = places[start : start + most]
            found.update(zip(part, _bootstrap(np.stack([samples[place] for place in part])), strict=True))
    members: dict[int, list[int]] = {}
    for place, family in enumerate(families or [0] * len(samples)):
        members.setdefault(family, []).append(place)
    for part in members.values():
        found.update(zip(part, holm([found[place] for place in part]), strict=True))
    return [found[place] for place in range(len(samples))]


def holm(judged: Sequence[Difference]) -> list[Difference]:
    """The differences with `adjusted` set by Holm's step-down over all of them."""
    if not judged:
        return []
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests([entry.p for entry in judged], alpha=1 - CONFIDENCE, method="holm")[1]
    return [replace(entry, adjusted=float(p)) for entry, p in zip(judged, adjusted, strict=True)]


def _bootstrap(stacked: NDArray[np.float64]) -> list[Difference]:
    """`differences` of one shape, float64 [samples, seeds, units], not yet corrected."""
    import numpy as np
    from scipy import stats

    count, seeds, units = stacked.shape
    flat = stacked.reshape(count * seeds, units)

    def means(*drawn: NDArray[np.int64], axis: int = -1) -> Any:
        # Counting how often each unit was drawn turns every resample into one row of a matrix product.
        del axis
        single = drawn[0].ndim == 1
        weights = [_weights(np.atleast_2d(each), size) for each, size in zip(drawn, sizes, strict=True)]
        of_seeds = (flat @ weights[0].T).reshape(count, seeds, -1)
        over = of_seeds.mean(axis=1) if seeds == 1 else np.einsum("csr,rs->cr", of_seeds, weights[1])
        return over[:, 0] if single else over

    sizes = (units,) if seeds == 1 else (units, seeds)
    resamples = RESAMPLES if units < MANY_UNITS else FEW_RESAMPLES
    result: Any = stats.bootstrap(
        tuple(np.arange(size) for size in sizes),
        means,
        n_resamples=resamples,
        batch=max(1, _BATCH // units),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    drawn = result.bootstrap_distribution
    below, above = (drawn <= 0).sum(axis=-1), (drawn >= 0).sum(axis=-1)
    p = np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (resamples + 1))
    if seeds > 1:
        p = np.maximum(p, _seeds_p(stacked.mean(axis=-1)))
    interval = result.confidence_interval
    return [
        Difference(float(mean), float(low), float(high), float(chance), seeds, units)
        for mean, low, high, chance in zip(
            stacked.mean(axis=(1, 2)), interval.low, interval.high, p, strict=True
        )
    ]


def _weights(drawn: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Shares with which each of `size` units occurs in rows of drawn indices [rows, draws]."""
    import numpy as np

    rows, draws = drawn.shape
    counts = np.bincount((drawn + size * np.arange(rows)[:, None]).ravel(), minlength=rows * size)
    weights: NDArray[np.float64] = counts.reshape(rows, size) / draws
    return weights


def _seeds_p(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided p of Student's t-test against zero on the seeds' means [samples, seeds]."""
    import numpy as np
    from scipy import stats

    # Seeds that agree to the last bit leave no variance to test with: zero means no difference, else a sure one.
    same = np.ptp(means, axis=1) == 0
    p = np.where(means[:, 0] == 0, 1.0, 0.0)
    if not same.all():
        p[~same] = stats.ttest_1samp(means[~same], 0.0, axis=1).pvalue
    return np.asarray(p, dtype=np.float64)
