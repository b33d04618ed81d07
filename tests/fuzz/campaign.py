"""Hunts one after another, each in a process of its own: `python tests/fuzz/campaign.py --minutes 10 [--only PARSER]...`.

Ends with exit code 1 where there was a finding. What a hunt reached is kept, as few inputs as can be, in tests/fuzz/corpus;
its figures go to studies/fuzz/hunts.jsonl. `--work DIR` is where findings and whole corpora lie (runs/fuzz).
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.parsers import PARSERS  # noqa: E402

LOG = ROOT / "studies" / "fuzz" / "hunts.jsonl"


def main() -> int:
    """See above."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=10.0)
    words.add_argument("--only", action="append", choices=PARSERS)
    words.add_argument("--work", type=Path, default=ROOT / "runs" / "fuzz")
    given = words.parse_args()
    findings = []
    for name in given.only or PARSERS:
        found = _hunt(name, given.work / name, round(given.minutes * 60))
        print(
            f"{name}: {found['runs']} inputs in {found['seconds']} s, {found['findings'] or 'no finding'}",
            flush=True,
        )
        findings += found["findings"]
    return 1 if findings else 0


def _hunt(name: str, work: Path, seconds: int) -> dict[str, object]:
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).parent / "hunt.py"), name, str(work)]
    before = _findings(work)
    began = time.monotonic()
    with (work / "hunt.log").open("wb") as log:
        code = subprocess.run(
            [*command, "--seconds", str(seconds)], stdout=log, stderr=log, check=False
        ).returncode
        took = time.monotonic() - began
        subprocess.run([*command, "--keep"], stdout=log, stderr=log, check=False)
    said = (work / "hunt.log").read_text(encoding="utf-8", errors="replace")
    runs = re.findall(r"number_of_executed_units: (\d+)", said) or re.findall(r"^#(\d+)", said, re.MULTILINE)
    edges = re.findall(r"cov: (\d+)", said)
    fresh = sorted(path.name for path in _findings(work) - before)
    found: dict[str, object] = {
        "parser": name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(took),
        "runs": int(runs[-1]) if runs else 0,
        "edges": int(edges[-1]) if edges else 0,
        "findings": fresh or ([] if code == 0 else [f"exit code {code}"]),
        "atheris": version("atheris"),
        "python": platform.python_version(),
    }
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def _findings(work: Path) -> set[Path]:
    return {path for kind in ("crash", "timeout", "oom", "leak") for path in work.glob(f"{kind}-*")}


if __name__ == "__main__":
    sys.exit(main())
