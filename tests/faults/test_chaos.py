"""Ten seeded blows on a small grid, in every run of the tests; `nox -s chaos` gives two hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_ten_kill_points_change_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    command = [sys.executable, str(Path(__file__).with_name("chaos.py")), "--points", "10", "--seed", "3"]
    # A process of its own: it forks, which one with threads must not.
    ended = subprocess.run([*command, "--log", str(log)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found = json.loads(log.read_text())
    assert (found["points"], found["lost"], found["duplicated"], found["wrong"]) == (10, 0, 0, [])
    assert {"prune", "perplexity"} <= set(found["by_phase"]), "the points fell on one part of the grid only"
