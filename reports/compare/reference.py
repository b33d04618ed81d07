"""Times and speeds as ratios to a reference operator that was timed in the same run, repeat by repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.results.records import Record
from bench.results.values import load_values
from methods.errors import MachineError, StoreError

__all__ = ["Ratios", "ratios"]

Arrays = Mapping[str, NDArray[Any]]

_LINEAR: Final = "F.linear on the same matrix"
_GENERATE: Final = "transformers' generate"


@dataclass(frozen=True)
class Ratios:
    """A time or speed over its reference's, one a repeat; `reference` names the operator.

    `values` float64 [repeats]; `missing` says why there is none.
    """

    values: NDArray[np.float64]
    reference: str = ""
    missing: str = ""

    @property
    def median(self) -> float:
        """The median over repeats."""
        return float(np.median(self.values))


def ratios(record: Record, metric: str, out: Path) -> Ratios:
    """The ratios of one timed metric of a record of the store in `out`.

    Kernel rows: seconds over those of torch's dense product in the same turn, CPU seconds where one thread ran.
    Decoding: speeds over transformers' generate between the same rounds; speed-ups are ratios already. Pruning and training:
    seconds over those of the matrix product timed around them.
    """
    arrays = _arrays(record, out) if record.phase in ("kernels", "decode") else {}
    if record.phase == "kernels":
        # One thread's own CPU time is its time on a quiet machine; those of several may overlap or wait.
        if record.parameters.get("threads") == 1 and "cpu_times" in arrays:
            return _divided(arrays, "cpu_times", "reference_cpu_times", f"{_LINEAR}, CPU times")
        return _divided(arrays, "times", "reference_times", _LINEAR)
    if record.phase == "decode":
        if metric.startswith("decode_speedup"):
            return _divided(arrays, metric, "", "the dense model, token by token")
        return _divided(arrays, metric, "decode_tokens_per_second_generate", _GENERATE)
    reference = record.provenance.get("reference")
    value = record.metric(metric)
    if not isinstance(reference, dict) or value is None:
        return _none("no reference operator was timed with it")
    seconds = reference.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < np.inf:
        return _none("no reference operator was timed with it")
    if not 0 < value < np.inf:
        return _none(f"{metric} is {value:.6g}, which is no time")
    return Ratios(np.array([value / seconds]), str(reference.get("operator", "")))


def _arrays(record: Record, out: Path) -> Arrays:
    try:
        return load_values(out, record.values)
    except (StoreError, MachineError):
        return {}


def _divided(arrays: Arrays, name: str, by: str, reference: str) -> Ratios:
    values, under = arrays.get(name), arrays.get(by) if by else np.ones(1)
    if values is None or under is None:
        return _none("its repeats, or the reference's, are not stored")
    values, under = np.asarray(values, np.float64), np.asarray(under, np.float64)
    if values.ndim != 1 or not values.size or (by and values.shape != under.shape):
        return _none("its repeats do not go with the reference's")
    if not (np.isfinite(values).all() and (under > 0).all() and (values > 0).all()):
        return _none("its repeats hold what is no time")
    return Ratios(values / under, reference)


def _none(why: str) -> Ratios:
    return Ratios(np.empty(0), missing=why)
