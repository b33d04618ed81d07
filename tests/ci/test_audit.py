"""The script that judges pip-audit, with stand-ins for that program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
OWN = {"name": "prune-bench", "skip_reason": "Dependency not found on PyPI: prune-bench (0.1.0)"}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI: torch (2.13.0)"}
BAD = {
    "name": "x",
    "version": "1",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}, {"id": "PYSEC-2", "fix_versions": []}],
}


def _audited(tmp_path: Path, packages: Any, *options: str) -> tuple[int, str, str]:
    """What the script makes of a pip-audit that finds ``packages``, or of one that cannot reach its service."""
    program = tmp_path / "pip-audit"
    body = (
        f"import sys\nwords = sys.argv\nopen(words[words.index('--output') + 1], 'w').write({json.dumps(packages)!r})\n"
        if packages is not None
        else "raise ConnectionError('no route to pypi.org')\n"
    )
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(program), str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("packages", "code", "out", "err"),
    [
        ([SOUND, OWN], 0, "2 packages, no known vulnerability\n", ""),
        (
            [SOUND, BAD],
            1,
            "x 1: PYSEC-1, fixed in 2\nx 1: PYSEC-2, fixed in no version\n",
            "error: 2 known vulnerabilities; install fixed versions, or --ignore-vuln ID\n",
        ),
        (
            [SOUND, UNKNOWN, OWN],
            1,
            "",
            (
                "error: 1 of 3 packages were not audited (first: Dependency not found on PyPI: torch (2.13.0)); "
                "run it again where the vulnerability service answers\n"
            ),
        ),
        (
            None,
            1,
            "",
            (
                "error: nothing was audited: ConnectionError: no route to pypi.org; "
                "run it again where the vulnerability service answers\n"
            ),
        ),
    ],
    ids=["sound", "vulnerable", "not looked up", "no network"],
)
def test_what_pip_audit_found_is_judged(
    tmp_path: Path, packages: list[dict[str, Any]] | None, code: int, out: str, err: str
) -> None:
    found = {"dependencies": packages} if packages is not None else None
    assert _audited(tmp_path, found) == (code, out, err)


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    for words, said in (([], "0 words given"), ([str(tmp_path / "none"), "."], "there is no program")):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert said in done.stderr and done.stderr.count("\n") == 1
