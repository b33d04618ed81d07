"""Ray clusters of several nodes on this machine, some of them killed while cells run on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.executors.grid import Outcome
from bench.executors.ray.cluster import installed
from bench.plan.cells import Cell, expand
from bench.plan.settings import gather
from bench.results.records import Record
from bench.results.segments import Store

__all__ = ["Killer", "cluster", "figures", "run"]

LOOPBACK = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the machine's outward address when it connects."""
MEASURED = ("time", "peak_memory", "base_memory", "tokens_per_second", "speed")
"""What is measured anew by every run: parts of the names of such metrics."""


@contextmanager
def cluster(nodes: int, cpus: int = 1) -> Iterator[Any]:
    """A cluster of so many nodes that run work, beside a head node that runs none and is never killed."""
    installed()
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "node_ip_address": LOOPBACK,
            "object_store_memory": 100 << 20,
            # a lost node is missed within 15 s, one on a busy machine is not taken for lost
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 30},
        },
    )
    try:
        made.workers = [
            made.add_node(num_cpus=cpus, node_ip_address=LOOPBACK, object_store_memory=100 << 20, wait=False)
            for _ in range(nodes)
        ]
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


class Killer:
    """A grid observer that kills nodes of a cluster, each once so many cells are done."""

    def __init__(self, cluster: Any, after: Sequence[int]) -> None:
        self.cluster = cluster
        self.after = list(after)
        self.ended: list[str] = []
        self.warnings: list[str] = []
        self.killed = 0

    def done(self, index: int, cell: Cell, status: str, summary: str) -> None:
        self.ended.append(status if status == "done" else f"{cell.name}: {status} {summary}")
        if self.after and len(self.ended) >= self.after[0]:
            self.after.pop(0)
            self.cluster.remove_node(self.cluster.workers.pop(0), allow_graceful=False)
            self.killed += 1

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def plan(self, cells: Sequence[Cell]) -> None: ...
    def cell(self, index: int, cell: Cell) -> None: ...
    def focus(self, index: int) -> None: ...
    def phase(self, name: str, total: int) -> None: ...
    def step(self, done: int, note: str = "") -> None: ...
    def cached(self, index: int, cell: Cell) -> None: ...
    def close(self) -> None: ...


def run(
    out: Path, observer: Any, *, address: str = "", command: tuple[str, ...] = (), **flags: Any
) -> Outcome:
    """`bench run` with these options, in process, or on the cluster at ``address``."""
    if address:
        from bench.executors.ray.run import execute

        flags |= {"executor": "ray", "ray_address": address}
    else:
        from bench.executors.local import execute
    settings = gather({"threads": "1", **flags}, command=command)
    return execute(expand(settings), out, observer, force=settings.force, save=settings.saved)


def figures(out: Path) -> Mapping[tuple[Any, ...], Any]:
    """Every record of a store by its key: all its figures but those that are measured anew. Each key once."""
    history = Store(out).history()
    found = {_key(record): _figures(record) for record in history}
    assert len(found) == len(history), f"{len(history) - len(found)} records are there more than once"
    return found


def _key(record: Record) -> tuple[Any, ...]:
    return (record.model, record.method, record.target, record.seed, record.key)


def _figures(record: Record) -> dict[str, Any]:
    told = record.model_dump()
    kept = {
        name: told[name]
        for name in ("status", "reason", "subject", "environment", "sources", "values", "warnings")
    }
    kept["metrics"] = [m for m in told["metrics"] if not any(part in m["name"] for part in MEASURED)]
    kept["matrices"] = [{k: v for k, v in matrix.items() if k != "seconds"} for matrix in told["matrices"]]
    return kept
