"""Which of two methods does better, and how sure that is: paired on the same windows or items, or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from bench.results.records import Record
from bench.results.values import readable_values
from reports.statistics import FEWEST_UNITS, Difference, differences

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DIVERGENCE",
    "FLIPS",
    "PERPLEXITY",
    "Measure",
    "Pair",
    "Sample",
    "Values",
    "Verdict",
    "judge",
    "measure_of",
    "sample",
]

Outcome = Literal["better", "worse", "not distinguishable", "not comparable"]


@dataclass(frozen=True)
class Measure:
    """One quality by which methods are compared: the array of the side files, and which way is better."""

    name: str
    array: str
    phase: str
    higher_is_better: bool = False


PERPLEXITY: Final = Measure("perplexity", "nll", "perplexity")
DIVERGENCE: Final = Measure("KL to dense", "kl_to_dense", "perplexity")
FLIPS: Final = Measure("top-1 flips", "top1_flip_rate", "perplexity")


def measure_of(task_metric: str) -> Measure:
    """The measure of a zero-shot metric as side files name it, `acc/<task>` or `acc_norm/<task>`."""
    return Measure(task_metric, task_metric, "zeroshot", higher_is_better=True)


class Values:
    """The side files of one store, each read and verified once; what cannot be read gives its reason instead."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._read: dict[str, Mapping[str, NDArray[np.float64]] | str] = {}

    def array(self, record: Record, name: str) -> NDArray[np.float64] | str:
        """A finite float64 array [units] of the record's side file, or why there is none, in a few words."""
        import numpy as np

        if not record.values:
            return "values of single windows were not recorded"
        if record.values not in self._read:
            self._read[record.values] = (
                readable_values(self.out, record.values)
                or "the file with the values of single windows is missing or damaged"
            )
        found = self._read[record.values]
        if isinstance(found, str):
            return found
        if name not in found:
            return f"{name} was not recorded for single windows"
        array = np.asarray(found[name], dtype=np.float64)
        if array.ndim != 1 or len(array) < FEWEST_UNITS:
            return f"too few windows or items: {array.size}, at least {FEWEST_UNITS} are needed"
        return array if np.isfinite(array).all() else "not finite on some windows"


@dataclass(frozen=True)
class Sample:
    """One method's values of one measure: float64 [seeds, units]; `seeds` is (None,) where none are drawn.

    `basis` holds all that two samples must share to be compared, by the word a refusal names it with.
    """

    name: str
    measure: Measure
    seeds: tuple[int | None, ...]
    basis: Mapping[str, str]
    values: NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Verdict:
    """What became of comparing A with B on one measure: `difference` is A - B, None where not comparable."""

    a: str
    b: str
    measure: Measure
    outcome: Outcome
    difference: Difference | None = None
    reason: str = ""

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Perplexity of A over that of B with the ends of its interval; None for other measures."""
        if self.difference is None or self.measure != PERPLEXITY:
            return None
        found = tuple(_exp(end) for end in (self.difference.mean, self.difference.low, self.difference.high))
        return found[0], found[1], found[2]

    @property
    def beyond(self) -> str:
        """What the interval covers, in words; empty where nothing was compared."""
        if self.difference is None:
            return ""
        units = "items" if self.measure.phase == "zeroshot" else "windows of text"
        if self.difference.seeds > 1:
            return f"{self.difference.units:,} {units} and {self.difference.seeds} calibration seeds"
        return f"{self.difference.units:,} {units}"

    def mirrored(self) -> Verdict:
        """The same finding told of B against A."""
        turned: dict[Outcome, Outcome] = {"better": "worse", "worse": "better"}
        found = self.difference
        return Verdict(
            self.b,
            self.a,
            self.measure,
            turned.get(self.outcome, self.outcome),
            None
            if found is None
            else Difference(
                -found.mean, -found.high, -found.low, found.p, found.seeds, found.units, found.adjusted
            ),
            self.reason,
        )


def sample(records: Iterable[Record], values: Values, measure: Measure, name: str = "") -> Sample | str:
    """The sample of one method's records (one a seed; other phases are skipped), or why there is none."""
    import numpy as np

    members = sorted(
        (record for record in records if record.phase == measure.phase and record.status == "done"),
        key=lambda record: -1 if record.seed is None else record.seed,
    )
    if not members:
        return "not evaluated"
    seeds = tuple(record.seed for record in members)
    if len(set(seeds)) < len(seeds):
        return "two results with one seed"
    bases = [basis(record) for record in members]
    if any(other != bases[0] for other in bases):
        return f"its seeds differ in {_differing(bases[0], next(b for b in bases if b != bases[0]))}"
    arrays = [values.array(record, measure.array) for record in members]
    for array in arrays:
        if isinstance(array, str):
            return array
    found = [array for array in arrays if not isinstance(array, str)]
    if len({len(array) for array in found}) > 1:
        return "its seeds differ in how many windows they were evaluated on"
    return Sample(name or members[0].method, measure, seeds, bases[0], np.stack(found))


def basis(record: Record) -> dict[str, str]:
    """What two results must share to be compared, by the words that a refusal names it with."""
    provenance = record.provenance
    model, evaluation = provenance.get("model"), provenance.get("evaluation")
    revision = model.get("revision") if isinstance(model, dict) else None
    tokens = evaluation.get("tokens_sha256") if isinstance(evaluation, dict) else None
    tasks = provenance.get("tasks")
    if tokens is None and tasks:
        tokens = hashlib.sha256(json.dumps(tasks, sort_keys=True).encode()).hexdigest()
    return {
        "model": record.model,
        "model revision": str(revision or ""),
        "evaluation protocol": record.protocol,
        "evaluated text": str(tokens or ""),
        "weight type": record.dtype,
        "recovery": "recovered" if record.parameters.get("recovery") else "one-shot",
    }


@dataclass(frozen=True)
class Pair:
    """Two methods to compare; a `str` in place of a sample says why there is none.

    p-values are corrected over the pairs of one `family`: give those that one table shows the same.
    """

    names: tuple[str, str]
    measure: Measure
    a: Sample | str
    b: Sample | str
    family: int = 0


def judge(pairs: Sequence[Pair], tests: Mapping[int, int] | None = None) -> list[Verdict]:
    """One verdict a pair, p-values corrected by Holm within each family, over as many hypotheses as `tests` says if more.

    Pairs that share no ground, be it text, protocol, model revision, weight type or recovery, are refused with what
    differs. Of two methods with several seeds those that both have are compared, seed by seed; one that draws none
    stands against every seed of the other.
    """
    aligned = [_aligned(pair) for pair in pairs]
    sound = [
        (found, pair.family) for found, pair in zip(aligned, pairs, strict=True) if not isinstance(found, str)
    ]
    judged = iter(differences([found for found, _ in sound], [family for _, family in sound], tests))
    verdicts = []
    for pair, found in zip(pairs, aligned, strict=True):
        if isinstance(found, str):
            verdicts.append(Verdict(*pair.names, pair.measure, "not comparable", reason=found))
            continue
        difference = next(judged)
        verdicts.append(Verdict(*pair.names, pair.measure, _outcome(difference, pair.measure), difference))
    return verdicts


def _outcome(difference: Difference, measure: Measure) -> Outcome:
    if not difference.settled or difference.mean == 0:
        return "not distinguishable"
    return "better" if (difference.mean > 0) == measure.higher_is_better else "worse"


def _aligned(pair: Pair) -> NDArray[np.float64] | str:
    """A - B on the seeds that both have, float64 [seeds, units], or why the two cannot be compared."""
    a, b = pair.a, pair.b
    if isinstance(a, str):
        return f"{pair.names[0]}: {a}"
    if isinstance(b, str):
        return f"{pair.names[1]}: {b}"
    if a.measure != b.measure:
        return "different measures"
    if a.basis != b.basis:
        return f"different {_differing(a.basis, b.basis)}"
    if a.values.shape[1] != b.values.shape[1]:
        return f"evaluated on {a.values.shape[1]:,} and {b.values.shape[1]:,} windows"
    if a.seeds == b.seeds or a.seeds == (None,) or b.seeds == (None,):
        return a.values - b.values
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        return "no calibration seed in common"
    own, other = ([side.seeds.index(seed) for seed in shared] for side in (a, b))
    return a.values[own] - b.values[other]


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    return " and ".join(name for name in first if first[name] != second.get(name))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
