"""One cell's calibration shared out over nodes of a real Ray: the figures of the same shares in one process, to the bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_clusters import Killer, cluster, figures, run

from bench.executors import grid
from bench.executors.grid import Outcome
from bench.plan.cells import Cell, expand
from bench.plan.settings import gather
from bench.results.segments import Store
from bench.run.cell import CellRunner
from methods.errors import UserError

# Ray leaves sockets and log files of its own to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

FLAGS: dict[str, Any] = {
    "models": "nano-llama",
    "samples": "9",
    "length": "64",
    "eval_length": "64",
    "windows": "4",
    "methods": "sparsegpt",
    "sparsity": "0.5",
    "hessian_dtype": "float64",
}


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


@contextmanager
def _shares(cell: Cell) -> Iterator[Sequence[Any]]:
    """The workers of a cell, all in this process."""
    from bench.models.load import resolve
    from bench.run.phases import run_of, source_of
    from bench.run.subject import Subject
    from methods.interface import Silent
    from methods.stream.shares import Share

    subject = Subject(resolve(cell.model))
    yield [
        Share(source_of(cell, subject), run_of(cell, Path(), "", Silent()))
        for _ in range(1, cell.calibration_workers)
    ]


@pytest.fixture
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The in-process executor, with workers."""

    def runner(*words: Any) -> CellRunner:
        return CellRunner(*words, team=_shares)

    monkeypatch.setattr(grid, "CellRunner", runner)


def _alone(out: Path, workers: int, **flags: Any) -> None:
    """The same cells in process; the dense one, and the pruned one with so many workers."""
    from dataclasses import replace

    from bench.cli.console import QuietObserver
    from bench.executors.local import execute

    plan = expand(gather({"threads": "1", **FLAGS, **flags}))
    cells = tuple(c if c.dense else replace(c, calibration_workers=workers) for c in plan.cells)
    assert execute(replace(plan, cells=cells), out, QuietObserver()) == Outcome(done=2)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_local")
@pytest.mark.parametrize("schedule", ["sequential", "blockwise"])
def test_two_workers_are_two_shares_to_the_bit(tmp_path: Path, schedule: str) -> None:
    with cluster(2) as nodes:
        killer = Killer(None, ())
        flags = {**FLAGS, "calibration_workers": "2", "schedule": schedule}
        assert run(tmp_path / "ray", killer, address=nodes.address, **flags) == Outcome(done=2), killer.ended
        again = run(tmp_path / "ray", Killer(None, ()), address=nodes.address, **flags)
        assert again == Outcome(cached=2)
    _alone(tmp_path / "alone", 2, schedule=schedule)
    assert figures(tmp_path / "ray") == figures(tmp_path / "alone")
    pruned = next(r for r in Store(tmp_path / "ray").records() if r.method != "dense" and r.phase == "prune")
    assert pruned.parameters["calibration_workers"] == 2
    _alone(tmp_path / "one", 1, schedule=schedule)
    one = next(r for r in Store(tmp_path / "one").records() if r.method != "dense" and r.phase == "prune")
    assert one.cell != pruned.cell, "rounding differs, so one must not stand in for the other"
    for ours, theirs in zip(pruned.matrices, one.matrices, strict=True):
        assert ours.removed == theirs.removed
        assert ours.heldout_error == pytest.approx(theirs.heldout_error, rel=0.02)


class _Striking(Killer):
    """Kills the node of one worker of the cell that is being pruned, once."""

    def __init__(self, cluster: Any, bundle: int) -> None:
        super().__init__(cluster, ())
        self.bundle = bundle
        self.pruning = False
        threading.Thread(target=self._strike, daemon=True).start()

    def phase(self, name: str, total: int) -> None:
        self.pruning |= name == "prune"

    def _strike(self) -> None:
        import time

        import ray

        while not self.pruning:
            time.sleep(0.02)
        groups = ray.util.placement_group_table().values()
        node = next(g for g in groups if g["state"] == "CREATED")["bundles_to_node_id"][self.bundle]
        there = next(worker for worker in self.cluster.workers if worker.node_id == node)
        self.cluster.workers.remove(there)
        self.cluster.remove_node(there, allow_graceful=False)
        self.killed += 1


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_local")
@pytest.mark.parametrize("bundle", [0, 1])
def test_a_lost_worker_is_replaced_and_no_figure_changes(tmp_path: Path, bundle: int) -> None:
    flags = {**FLAGS, "samples": "64", "length": "128"}
    with cluster(3) as nodes:
        killer = _Striking(nodes, bundle)
        outcome = run(tmp_path / "ray", killer, address=nodes.address, calibration_workers="2", **flags)
        assert outcome == Outcome(done=2), killer.ended
        assert killer.killed == 1
    assert [text for text in killer.warnings if "begun again" in text]
    _alone(tmp_path / "alone", 2, samples="64", length="128")
    assert figures(tmp_path / "ray") == figures(tmp_path / "alone")


@pytest.mark.timeout(900)
def test_a_cluster_without_room_for_all_workers_refuses(tmp_path: Path) -> None:
    with cluster(1) as nodes:
        killer = Killer(None, ())
        flags = {**FLAGS, "calibration_workers": "3"}
        outcome = run(tmp_path / "ray", killer, address=nodes.address, **flags)
        assert outcome == Outcome(done=1, refused=1)
    record = next(r for r in Store(tmp_path / "ray").records() if r.status == "refused")
    assert "1 CPUs" in record.reason
    assert "for each of 3 workers, and the Ray cluster has room for 1" in record.reason


def test_workers_are_of_a_cluster_and_of_methods_that_can_share() -> None:
    with pytest.raises(
        UserError, match="--calibration-workers 2 are processes of a Ray cluster; add --executor ray"
    ):
        gather({**FLAGS, "calibration_workers": "2"})
    asked = {**FLAGS, "executor": "ray", "calibration_workers": "2", "methods": "slicegpt,magnitude,wanda"}
    del asked["sparsity"]
    plan = expand(gather(asked))
    assert {c.method: c.calibration_workers for c in plan.cells} == {"dense": 1, "magnitude": 1, "wanda": 2}
    assert [r.reason for r in plan.refusals] == [
        "slicegpt works in one process; leave out --calibration-workers 2"
    ]
    trained = expand(gather({**FLAGS, "executor": "ray", "calibration_workers": "2", "recover": "full"}))
    assert [r.reason for r in trained.refusals] == [
        "--recover full works in one process; leave out --calibration-workers 2"
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 5)])
def test_a_tensor_travels_unchanged(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    from bench.executors.ray.team import _Sent

    tensor = (torch.rand(shape) * 10).to(dtype)
    turned = tensor.transpose(0, -1) if tensor.ndim > 1 else tensor
    for given in (tensor, turned):
        back = _Sent.of(given).tensor()
        assert back.dtype == dtype
        assert torch.equal(back, given)
