"""Which records of a store still speak: the latest of each subject, without failures made good since."""

from __future__ import annotations

import json
from collections.abc import Iterable

from bench.results.records import Record, moment

__all__ = ["current"]


def current(records: Iterable[Record]) -> list[Record]:
    """Of every (subject, phase, protocol) the latest finished record, in the order they first appeared.

    A rerun under changed code has another cell but the same subject: the figures of the older code stay in
    the store, and out of the comparison. So does a refusal or failure of what was asked for again and done
    since.
    """
    latest: dict[tuple[str, str, str], Record] = {}
    finished: dict[tuple[str, ...], Record] = {}
    for record in sorted(records, key=lambda record: moment(record.finished)):
        latest[record.subject, record.phase, record.protocol] = record
        if record.status == "done":
            # Whatever was measured of a pruned model shows that its prune was done, or found stored.
            finished[_asked(record)] = finished[_request(record)] = record
    return [record for record in latest.values() if not _made_good(record, finished.get(_asked(record)))]


def _asked(record: Record) -> tuple[str, ...]:
    """What was asked for, phase by phase; the prune stands for the request as a whole."""
    phase = () if record.phase == "prune" else (record.phase, record.protocol)
    return (*_request(record), *phase)


def _request(record: Record) -> tuple[str, ...]:
    """The request, whatever came of it: a cell whose model was missing has no revision to go by."""
    parameters = json.dumps(record.parameters, sort_keys=True)
    return (
        record.model,
        record.method,
        record.target,
        str(record.seed),
        record.dtype,
        record.calibration,
        parameters,
    )


def _made_good(record: Record, later: Record | None) -> bool:
    return record.status != "done" and later is not None and moment(later.finished) > moment(record.finished)
