"""NEW - BASE on the same windows of text or items of tasks, for a paired test."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.results.records import Record
from reports.compare.join import Pair
from reports.verdicts import Values

__all__ = ["paired"]

_WINDOWS: Final = {"perplexity": "nll"}
"""Figures whose windows go by another name in values files."""
_SUITE_MEANS: Final = ("acc_avg/", "acc_avg_partial/")


def paired(pair: Pair, metric: str, stores: tuple[Values, Values]) -> NDArray[np.float64] | None:
    """What single windows or items changed by, float64 [units]; None where one side has none.

    Of a suite's mean: the items of all its tasks, weighted so that their mean is the change of the mean over tasks. What
    tasks differ in counts as chance then, which can only make the test more careful than one within tasks.
    """
    if not metric.startswith(_SUITE_MEANS):
        return _change(pair, _WINDOWS.get(metric, metric), stores)
    tasks = _averaged(pair.base, metric)
    if not tasks or tasks != _averaged(pair.new, metric):
        return None
    found = [_change(pair, name, stores) for name in tasks]
    known = [items for items in found if items is not None]
    if len(known) < len(found):
        return None
    count = sum(map(len, known))
    return np.concatenate([items * (count / (len(known) * len(items))) for items in known])


def _change(pair: Pair, name: str, stores: tuple[Values, Values]) -> NDArray[np.float64] | None:
    records = (pair.base, pair.new)
    first, second = (store.array(record, name) for store, record in zip(stores, records, strict=True))
    if isinstance(first, str) or isinstance(second, str) or first.shape != second.shape:
        return None
    return second - first


def _averaged(record: Record, metric: str) -> list[str]:
    """The figures whose mean a suite's mean is, as values files name them; empty where that is not recorded."""
    suites = record.provenance.get("suites")
    facts = suites.get(metric.partition("/")[2]) if isinstance(suites, dict) else None
    tasks = facts.get("tasks") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(tasks, list):
        return []
    known = {entry.name for entry in record.metrics}
    asked = (f"{facts.get('metric')}/{task}" for task in tasks)
    return [name if name in known else f"acc/{name.partition('/')[2]}" for name in asked]
