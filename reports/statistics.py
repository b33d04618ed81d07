"""The statistics of a comparison: means over seeds with their intervals, paired differences, corrected p-values."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 4999
"""Bootstrap resamples of fewer than `MANY_UNITS` windows or items."""
FEW_RESAMPLES: Final = 999
MANY_UNITS: Final = 2000
"""From so many windows or items on, `FEW_RESAMPLES` serve: their means are close to normal."""
FEWEST_UNITS: Final = 6
"""Fewer windows or items than this are no sample to resample from."""

_SEED: Final = 20230102
_BATCH: Final = 1 << 22
_TOGETHER: Final = 512


@dataclass(frozen=True, slots=True)
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
    try:
        mean = math.fsum(known) / len(known)
        variance = math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1)
    except OverflowError:
        return Summary(math.inf, None, len(known))
    reach = _student_quantile(len(known) - 1)
    # Counts that agree between seeds stay whole numbers.
    centre = known[0] if all(value == known[0] for value in known) else mean
    return Summary(centre, reach * math.sqrt(variance / len(known)), len(known))


@functools.cache
def _student_quantile(freedom: int) -> float:
    """Half the width of Student's t interval in standard errors."""
    from scipy import special

    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def geometric(values: Sequence[float | None]) -> Summary:
    """Geometric mean of positive figures of independent runs; of perplexities, the exponential of the mean loss.

    `half_width` is the mean times that of the logarithms' Student-t interval (the delta method). One value, missing
    ones and ones that are not finite are as in `summarise`; several of which one is not positive have no mean (NaN).
    """
    plain = summarise(values)
    known = [value for value in values if value is not None]
    if plain.mean is None or len(known) == 1 or not all(map(math.isfinite, known)):
        return plain
    if min(known) <= 0:
        return Summary(math.nan, None, len(known))
    logarithms = summarise([math.log(value) for value in known])
    # Equal seeds keep their figure to the last bit.
    mean = known[0] if len(set(known)) == 1 else math.exp(logarithms.mean or 0.0)
    return Summary(mean, mean * (logarithms.half_width or 0.0), len(known))


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


def resamples_of(units: int) -> int:
    """How often the bootstrap draws that many windows or items."""
    return RESAMPLES if units < MANY_UNITS else FEW_RESAMPLES


def differences(
    samples: Sequence[NDArray[np.float64]],
    families: Sequence[int] = (),
    tests: Mapping[int, int] | None = None,
) -> list[Difference]:
    """Judge paired differences A - B, float64 [seeds, units] each.

    p is Student's, and so has no floor that a correction could not pass. One seed: the paired t-test over units, which
    speaks of other text only. Several: the mean over its standard error from both units and seeds (two-way cluster-robust
    variance without the interaction's share, so never too small: Cameron, Gelbach and Miller 2011, Journal of Business
    & Economic Statistics 29:238), degrees of freedom after Satterthwaite 1946 (Biometrics Bulletin 2:110); and, as two or
    three seeds may agree by luck, no less than the t-test on the seeds' means.

    The interval is the widest of those of these tests and of scipy's percentile bootstrap, which draws units anew and,
    where there are several, seeds, independently (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics
    1:386). Where the bootstrap's p reaches 1 - `CONFIDENCE`, p is no less: no difference stands whose interval holds zero.

    Holm's correction (statsmodels) runs over the samples of one family, by the number that `families` gives each; over all
    without it. `tests` gives a family's number of hypotheses where more than its samples were looked at to choose them.
    Draws are seeded: equal samples give equal results. Raises ValueError for arrays of other dimensions, fewer than
    `FEWEST_UNITS` units or values that are not finite.
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
    # multipletests collects garbage at every call, which would walk all records of a store each time.
    collecting = gc.isenabled() and not gc.get_freeze_count()
    if collecting:
        gc.freeze()
    try:
        for family, part in members.items():
            corrected = holm([found[place] for place in part], (tests or {}).get(family, 0))
            found.update(zip(part, corrected, strict=True))
    finally:
        if collecting:
            gc.unfreeze()
    return [found[place] for place in range(len(samples))]


def holm(judged: Sequence[Difference], tests: int = 0) -> list[Difference]:
    """The differences with `adjusted` set by Holm's step-down over all of them, or over `tests` hypotheses if that is more.

    Hypotheses that were not tested count as the least significant, which can only raise the others' p.
    """
    if not judged:
        return []
    from statsmodels.stats.multitest import multipletests

    untested = [1.0] * (tests - len(judged))
    adjusted = multipletests(
        [*(entry.p for entry in judged), *untested], alpha=1 - CONFIDENCE, method="holm"
    )[1]
    return [replace(entry, adjusted=float(p)) for entry, p in zip(judged, adjusted, strict=False)]


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
    resamples = resamples_of(units)
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
    chance = np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (resamples + 1))
    p, low, high = _student(stacked)
    # Resamples may refuse a difference; of how sure one is they know no more than their number.
    p = np.where(chance >= 1 - CONFIDENCE, np.maximum(p, chance), p)
    ends = result.confidence_interval
    low, high = np.minimum(low, ends.low), np.maximum(high, ends.high)
    columns = (stacked.mean(axis=(1, 2)), low, high, p)
    return [
        Difference(float(mean), float(start), float(end), float(sure), seeds, units)
        for mean, start, end, sure in zip(*columns, strict=True)
    ]


def _weights(drawn: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Shares with which each of `size` units occurs in rows of drawn indices [rows, draws]."""
    import numpy as np

    rows, draws = drawn.shape
    counts = np.bincount((drawn + size * np.arange(rows)[:, None]).ravel(), minlength=rows * size)
    weights: NDArray[np.float64] = counts.reshape(rows, size) / draws
    return weights


def _student(stacked: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Two-sided p against zero and both ends of the interval, by `differences`' t-tests, of [samples, seeds, units]."""
    import numpy as np

    _, seeds, units = stacked.shape
    means = stacked.mean(axis=(1, 2))
    text = _error(stacked.mean(axis=1))
    if seeds == 1:
        tests = [(text, np.full(len(means), units - 1.0))]
    else:
        drawn = _error(stacked.mean(axis=2))
        both = text + drawn
        share = np.divide(text, both, out=np.zeros_like(both), where=both > 0)
        freedom = 1 / (share**2 / (units - 1) + (1 - share) ** 2 / (seeds - 1))
        tests = [(both, freedom), (drawn, np.full(len(means), seeds - 1.0))]
    found = [_against_zero(means, np.sqrt(error), freedom) for error, freedom in tests]
    p, reach = (np.max([each[place] for each in found], axis=0) for place in (0, 1))
    return p, means - reach, means + reach


def _error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squared standard error of the means of [samples, draws]; 0 where all draws are the same to the last bit."""
    import numpy as np

    error = values.var(axis=1, ddof=1) / values.shape[1]
    return np.where(np.ptp(values, axis=1) == 0, 0.0, error)


def _against_zero(
    means: NDArray[np.float64], errors: NDArray[np.float64], freedom: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two-sided p of Student's t and half the width of its interval, by mean, standard error and degrees of freedom."""
    import numpy as np
    from scipy import special

    # Values without any spread leave nothing to test: zero means no difference, else a sure one.
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(means == 0, 1.0, 2 * special.stdtr(freedom, -np.abs(means) / errors))
    return p, errors * special.stdtrit(freedom, (1 + CONFIDENCE) / 2)
