"""Grids on a real Ray of several nodes that are killed while it runs: nothing lost, nothing twice, every bit the serial run's."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import Killer, cluster, figures, run

from bench.executors.grid import Outcome
from bench.results.segments import Store

# Ray leaves sockets and log files of its own to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _no_texts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


@pytest.mark.timeout(900)  # nodes start slowly where every core is busy
def test_a_killed_node_costs_no_cell_and_changes_no_figure(tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "models": "nano-opt,nano-llama",
        "samples": "4",
        "length": "64",
        "eval_length": "64",
        "windows": "4",
        "methods": "magnitude,sparsegpt",
        "sparsity": "0.5",
    }
    run(tmp_path / "serial", Killer(None, ()), **flags)
    with cluster(3) as nodes:
        killer = Killer(nodes, after=[2])
        words = ("run", "--executor", "ray", f"--ray-address={nodes.address}", "--methods", "magnitude")
        outcome = run(tmp_path / "ray", killer, address=nodes.address, command=words, **flags)
        assert killer.killed == 1
        assert outcome == Outcome(done=6)
        again = run(tmp_path / "ray", Killer(None, ()), address=nodes.address, command=words, **flags)
        assert again == Outcome(cached=6)
    assert figures(tmp_path / "ray") == figures(tmp_path / "serial")
    record = Store(tmp_path / "ray").records()[0]
    assert record.provenance["command"] == ["bench", "run", "--methods", "magnitude"]
    assert not (tmp_path / "ray" / "work").exists()
    assert json.loads((tmp_path / "ray" / "run.json").read_text())["state"] == "finished"


@pytest.mark.chaos
@pytest.mark.timeout(4 * 3600)
def test_hundreds_of_cells_survive_two_of_three_nodes(tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "models": "nano-*",
        "samples": "4",
        "length": "64",
        "eval_length": "64",
        "windows": "4",
        "methods": "magnitude,wanda,sparsegpt",
        "sparsity": ",".join(f"{share / 100:g}" for share in range(5, 100, 5)),
        "seeds": "0,1,2,3",
    }
    began = time.monotonic()
    with cluster(3) as nodes:
        killer = Killer(nodes, after=[100, 300])
        outcome = run(tmp_path / "ray", killer, address=nodes.address, **flags)
    took = time.monotonic() - began
    assert killer.killed == 2
    assert outcome == Outcome(done=516), [line for line in killer.ended if line != "done"][:5]
    began = time.monotonic()
    run(tmp_path / "serial", Killer(None, ()), **flags)
    ours, theirs = figures(tmp_path / "ray"), figures(tmp_path / "serial")
    assert len(ours) == 2 * 516
    assert ours == theirs
    print(
        f"516 cells, {len(ours)} records, each once, all equal to the serial run's; two of three nodes killed, "
        f"{len([w for w in killer.warnings if 'begun again' in w])} cells begun again; "
        f"{took:.0f} s on Ray, {time.monotonic() - began:.0f} s serial"
    )
