"""What the Ray executor keeps of a cell that it has told to stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sample_records import record

from bench.executors.ray.desk import Delivery, Message
from bench.executors.ray.run import _Run
from bench.results.records import encode


def test_a_stopped_cells_failure_is_not_recorded_and_its_results_are() -> None:
    kept: list[tuple[str, str]] = []
    results = SimpleNamespace(
        append=lambda found: kept.append((found.cell, found.status)),
        keep_traceback=lambda name, _: kept.append((name, "traceback")),
    )
    run: Any = _Run.__new__(_Run)
    run.grid, run.heard, run.stopping = SimpleNamespace(live=None, results=results), 0, False
    failed = Delivery(encode(record(cell="a", status="failed", reason="broken", metrics=())))
    run._hear([Message(1, 0, "record", (failed,))])
    run.stopping = True
    run._hear(
        [
            Message(1, 0, "record", (failed,)),
            Message(2, 1, "traceback", ("t.txt", "…")),
            Message(3, 1, "record", (failed,)),
            Message(4, 1, "record", (Delivery(encode(record(cell="b"))),)),
        ]
    )
    assert kept == [("a", "failed"), ("b", "done")]
    assert run.heard == 4
