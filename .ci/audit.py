"""Asks pip-audit for known vulnerabilities of installed packages, and takes no silence for a good answer.

    python .ci/audit.py PIP_AUDIT FOLDER [OPTION...]

PIP_AUDIT is the program, FOLDER holds the packages (site-packages), options go to pip-audit. By itself pip-audit ends with
a traceback where its service cannot be reached, and with exit code 0 where the service knows none of the packages; here
each is one line. Exit codes: 0 every package was looked up and nothing is known against it, 1 otherwise, 2 wrong usage.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OWN = "prune-bench"
"""Is on no index."""


def main(words: Sequence[str]) -> int:
    """Run pip-audit and judge what it found."""
    if len(words) < 2:
        return _say(f"{len(words)} words given; give PIP_AUDIT FOLDER [OPTION...]", 2)
    program, folder, *options = words
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found.json"
        asked = [program, "--path", folder, "--format", "json", "--output", str(found)]
        try:
            done = subprocess.run(
                [*asked, "--progress-spinner", "off", *options], capture_output=True, text=True, check=False
            )
            packages = json.loads(found.read_text(encoding="utf-8"))["dependencies"]
        except FileNotFoundError as error:
            if error.filename == program:
                return _say(f"there is no program '{program}'; install pip-audit", 2)
            reason = (done.stderr.strip() or "it said nothing").splitlines()[-1][:300]
            return _say(
                f"nothing was audited: {reason}; run it again where the vulnerability service answers", 1
            )
    return _judge(packages)


def _judge(packages: list[dict[str, Any]]) -> int:
    known = [
        f"{package['name']} {package['version']}: {entry['id']}, fixed in {', '.join(entry['fix_versions']) or 'no version'}"
        for package in packages
        for entry in package.get("vulns", ())
    ]
    for line in known:
        print(line)
    missed = [package for package in packages if "skip_reason" in package and package["name"] != OWN]
    if missed:
        return _say(
            f"{len(missed)} of {len(packages)} packages were not audited (first: {missed[0]['skip_reason']}); "
            "run it again where the vulnerability service answers",
            1,
        )
    if known:
        return _say(f"{len(known)} known vulnerabilities; install fixed versions, or --ignore-vuln ID", 1)
    print(f"{len(packages)} packages, no known vulnerability")
    return 0


def _say(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
