"""`bench status` on runs that live, ended, were interrupted or died."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sample_records import later, record

from bench.cli.status import inspect
from bench.results.segments import Store

CELLS = [
    {
        "model": "nano-opt",
        "method": "dense",
        "target": "0%",
        "seed": None,
        "state": "done",
        "phase": "",
        "done": 0,
        "total": 0,
    },
    {
        "model": "nano-opt",
        "method": "sparsegpt",
        "target": "50%",
        "seed": 0,
        "state": "running",
        "phase": "prune",
        "done": 2,
        "total": 5,
    },
    {
        "model": "nano-opt",
        "method": "sparsegpt",
        "target": "2:4",
        "seed": 0,
        "state": "waiting",
        "phase": "",
        "done": 0,
        "total": 0,
    },
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "bench-out"
    with Store(folder, create=True) as store:
        store.append(record(model="nano-opt", method="dense", target="0%", seed=None))
        store.append(
            record(
                cell="c1",
                subject="s1",
                method="slicing",
                status="refused",
                reason="post-norm\nmodels cannot be sliced",
            )
        )
    return folder


def live(out: Path, **changes: Any) -> None:
    state = {
        "state": "running",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(),
        "updated": datetime.now(UTC).isoformat(),
        "command": ["run", "--models", "nano-*"],
        "cells": CELLS,
    }
    (out / "run.json").write_text(json.dumps(state | changes))


def gone() -> int:
    """A process number that was ours and is free again."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_live_run(bench: Any, out: Path) -> None:
    live(out)
    found = json.loads(bench("status", "--json").out)
    assert found["state"] == "running"
    assert found["cells"] == {"done": 1, "running": 1, "waiting": 1}
    assert found["current"] == ["nano-opt sparsegpt 50% seed 0, prune 2/5"]
    assert found["records"] == {"done": 1, "refused": 1}
    assert found["resume"] is None
    shown = bench("status").out
    assert f"process {os.getpid()}" in shown
    assert "1 of 3 over" in shown
    assert "now: nano-opt sparsegpt 50% seed 0, prune 2/5" in shown
    assert "post-norm models cannot be sliced" in shown


def test_failures_made_good_since_are_not_listed(out: Path) -> None:
    with Store(out, create=True) as store:
        store.append(record(cell="u", subject="unpulled", status="failed", reason="offline"))
        assert len(inspect(out)["problems"]) == 2
        store.append(record(cell="p", subject="pulled", finished=later(60)))
    found = inspect(out)
    assert [problem["status"] for problem in found["problems"]] == ["refused"]
    assert found["records"] == {"done": 2, "refused": 1}


def test_a_dead_run_says_how_to_resume(bench: Any, out: Path) -> None:
    live(out, pid=gone())
    (out / "run.holder.json").write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    result = bench("status")
    assert result.code == 0
    assert ": dead (process" in result.out
    assert "stopped in: nano-opt sparsegpt 50% seed 0, prune 2/5" in result.out
    assert "resume with: bench run --models 'nano-*'" in result.out


def test_another_process_under_the_same_number_is_not_the_run(out: Path) -> None:
    live(out, started=(datetime.now(UTC) - timedelta(days=400)).isoformat())
    assert inspect(out)["state"] == "dead"


def test_a_run_on_another_machine_is_believed(out: Path) -> None:
    live(out, pid=gone(), host="elsewhere")
    assert inspect(out)["state"] == "running"


@pytest.mark.parametrize(("state", "resume"), [("finished", False), ("interrupted", True)])
def test_ended_runs(out: Path, state: str, resume: bool) -> None:
    live(out, state=state, pid=gone())
    found = inspect(out)
    assert found["state"] == state
    assert (found["resume"] is not None) == resume


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"state": 5, "cells": 7, "pid": "x", "command": [1]}', "\0" * 50]
)
def test_a_state_file_that_is_broken_does_not_hide_the_records(bench: Any, out: Path, text: str) -> None:
    (out / "run.json").write_text(text)
    found = json.loads(bench("status", "--json").out)
    assert found["state"] == "unknown"
    assert found["records"] == {"done": 1, "refused": 1}
    assert bench("status").code == 0


def test_damage_is_shown_and_nothing_is_changed(bench: Any, out: Path) -> None:
    segment = next((out / "records").glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes()[:-20])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "damaged: " in bench("status").out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_run(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    result = bench("status", "--out", "other")
    assert result.code == 2
    assert "holds no run" in result.error


def test_control_characters_in_names_stay_off_the_terminal(bench: Any, out: Path) -> None:
    live(out, cells=[{**CELLS[1], "model": "evil\x1b[2J\x07"}])
    assert "\x1b" not in bench("status").out
