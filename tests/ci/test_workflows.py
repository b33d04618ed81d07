"""The workflows: valid, their actions pinned to commits, no rights beyond what they use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def parsed(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_workflows_follow_the_schema() -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema comes with the dev extra")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run(
        [*command, *map(str, WORKFLOWS)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "nightly.yml"}


def test_every_action_is_pinned_to_a_commit_with_its_version() -> None:
    for path in WORKFLOWS:
        used = [line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
        assert used
        for line in used:
            assert re.search(r"uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_only_the_job_that_opens_issues_may_write() -> None:
    for path in WORKFLOWS:
        workflow = parsed(path)
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            rights = job.get("permissions", {})
            assert rights == ({"contents": "read", "issues": "write"} if name == "issue" else {})
            assert job["timeout-minutes"] <= 120


def test_the_nightly_steps_are_those_of_the_nox_session() -> None:
    jobs = parsed(ROOT / ".github/workflows/nightly.yml")["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    nightly = [run for run in runs if "nox -s nightly" in run]
    assert len(nightly) == 3
    for named in re.findall(r"\.ci/nightly/\S+|studies/\S+", "\n".join(nightly)):
        assert (ROOT / named).exists(), named


def test_the_issue_job_tells_of_every_grid_however_it_ended() -> None:
    jobs = parsed(ROOT / ".github/workflows/nightly.yml")["jobs"]
    issue = jobs.pop("issue")
    assert issue["needs"] == list(jobs) and issue["if"] == "${{ !cancelled() }}"
    step = issue["steps"][-1]
    for grid, job in jobs.items():
        assert f'"{grid}=${grid.upper()}"' in step["run"]
        assert step["env"][grid.upper()] == f"${{{{ needs.{grid}.result }}}}"
        assert job["steps"][-1]["with"]["name"] == f"nightly-{grid}"
