"""The contract is worth what it catches: a package of bad plug-ins, run as their author would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]

CAUGHT: dict[str, dict[str, str]] = {
    "honest": {},
    "whole": {},
    "greedy": {
        "test_budgets_are_exact": "for 392",
        "test_a_rule_is_pure": "the mask removes 393, the budget says 392",
        "test_no_share_changes_nothing": "",
    },
    "threshold": {"test_equal_weights": "for 392"},
    "gambler": {
        "test_same_seed_same_bits": "draw from run.generator only",
        "test_a_rule_is_pure": "draw from run.generator only",
        "test_order_of_matrices_is_irrelevant": "mlp.down_proj",
    },
    "scribbler": {"test_a_rule_is_pure": "moments are shared and only read"},
    "counter": {"test_order_of_matrices_is_irrelevant": "block 1"},
    "careless": {"test_hostile_values_work_or_are_named": "KeyError"},
    "refuser": {"test_refusals_are_reasons": "bad width"},
    "spoiler": {"test_inputs_are_left_alone": "not to be written to"},
    "widener": {"test_stored_dtypes_are_kept": "block 0"},
    "forgetful": {"test_a_resume_point_of_another_run_is_not_used": "resumed_blocks"},
    "magnitude@lavish": {"test_budgets_are_exact": "removed", "test_no_share_changes_nothing": ""},
    "magnitude+mender": {"test_budgets_are_exact": "a refinement may only exchange them"},
}
"""Tests that must fail of each spelling, and words of why; more may fail, but none of the two good ones."""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, str]]]:
    """Outcome of every contract test of every spelling, from a pytest of its own in a package of its own."""
    folder = tmp_path_factory.mktemp("package")
    info = folder / "bad_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-methods\nVersion: 1.0\n")
    rules = [name for name in CAUGHT if "@" not in name and "+" not in name]
    groups = {"methods": rules, "allocations": ["lavish"], "refinements": ["mender"]}
    (info / "entry_points.txt").write_text(
        "".join(
            f"[prune_bench.{group}]\n" + "".join(f"{name} = bad_methods:{name}\n" for name in names)
            for group, names in groups.items()
        )
    )
    lines = ["from methods.contract import MethodContract\n"]
    for number, spelling in enumerate(CAUGHT):
        narrow = "" if spelling == "honest" else '; families = ("llama",); targets = ("50%",)'
        lines.append(f'class Test{number}(MethodContract): method = "{spelling}"{narrow}\n')
    (folder / "test_mine.py").write_text("".join(lines))
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--junitxml=out.xml",
            ".",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, _HERE, _ROOT)))},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (folder / "out.xml").exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, dict[str, dict[str, str]]] = {name: {} for name in CAUGHT}
    names = list(CAUGHT)
    for case in ET.parse(folder / "out.xml").iter("testcase"):  # noqa: S314 - our own file
        spelling = names[int(case.attrib["classname"].rpartition("Test")[2])]
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome, said = (
            ("passed", "") if bad is None else (bad.tag, bad.attrib.get("message", "") + (bad.text or ""))
        )
        found[spelling].setdefault(outcome, {})[case.attrib["name"].partition("[")[0]] = said
    return found


@pytest.mark.parametrize("spelling", list(CAUGHT))
def test_it_catches(verdicts: dict[str, dict[str, dict[str, str]]], spelling: str) -> None:
    found = verdicts[spelling]
    assert "error" not in found
    failed = found.get("failure", {})
    for test, said in CAUGHT[spelling].items():
        assert said in failed[test]
    assert len(found["passed"]) > 8
    if not CAUGHT[spelling]:
        assert failed == {}


def test_the_good_ones_skip_only_what_is_not_theirs(verdicts: dict[str, dict[str, dict[str, str]]]) -> None:
    assert set(verdicts["honest"]["skipped"]) == {"test_calibration_counts_only_where_it_should"}
    assert set(verdicts["whole"]["skipped"]) == {
        "test_order_of_matrices_is_irrelevant",
        "test_a_rule_is_pure",
    }
