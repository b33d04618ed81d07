"""Processes that the mirror starts: their surroundings, a time limit, and what they said, on one line without secrets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.mirror.ledger import FOLDER
from bench.results.redact import HIDDEN, redact
from methods.errors import OutsideError

__all__ = ["OWN", "Answer", "contained", "last_line", "run", "without_secrets"]

OWN: Final = ".wandb"
"""Under OUT/wandb, for as long as a process of ours runs: caches and logs."""

_ONE_RUN: Final = {
    f"WANDB_{name}"
    for name in (
        *(
            "MODE",
            "DISABLED",
            "SERVICE",
            "RUN_ID",
            "NAME",
            "RUN_NAME",
            "RUN_GROUP",
            "RUN_TAGS",
            "TAGS",
            "NOTES",
        ),
        *("JOB_TYPE", "RESUME", "SWEEP_ID", "DIR", "PROJECT", "ENTITY", "QUIET"),
    )
}
_SECRETS: Final = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_SECRET: Final = re.compile(r"\b(?:local-)?[0-9A-Za-z_]{40,}\b")


@dataclass(frozen=True)
class Answer:
    """What a finished process wrote."""

    code: int
    out: str
    err: str


def contained(out: Path, environ: Mapping[str, str], *, keys: bool) -> dict[str, str]:
    """An environment that keeps wandb's files under OUT/wandb.

    Without `keys` no setting of the user's reaches wandb at all, so no secret and no network address either; with them
    all do but those of a single run, which would bend ours.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("WANDB_") or (keys and name not in _ONE_RUN)
    }
    own = out.resolve() / FOLDER / OWN
    folders = {f"WANDB_{name}_DIR": str(own / name.lower()) for name in ("CACHE", "DATA", "ARTIFACT")}
    if not keys:
        folders["WANDB_CONFIG_DIR"] = str(own / "config")
    return {**kept, **folders, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "false" if keys else "true"}


def run(
    words: Sequence[str],
    environ: Mapping[str, str],
    *,
    limit: float,
    request: str = "",
    cwd: Path | None = None,
) -> Answer:
    """Run `python -m WORDS…` for at most `limit` seconds and return what it wrote.

    Raises `OutsideError` where the time is up: the process is ended with all that it started.
    """
    # Never a module of the folder that the user happens to be in; ours from where this process has them.
    command = [sys.executable, "-P", "-m", *words]
    found = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environ = {**environ, "PYTHONPATH": os.pathsep.join((*found, str(Path(__file__).parents[2])))}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        cwd=cwd,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        written, said = process.communicate(request, timeout=limit)
    except subprocess.TimeoutExpired:
        raise OutsideError(f"not done within {limit:.0f} s") from None
    finally:
        if process.poll() is None:
            # The service that wandb starts is of the same session; it ends by itself where its parent ended well.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return Answer(process.returncode, written, said)


def last_line(text: str, environ: Mapping[str, str]) -> str:
    """The last line of what a process said, without its secrets."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return without_secrets(lines[-1] if lines else "it said nothing", environ)


def without_secrets(line: str, environ: Mapping[str, str]) -> str:
    """The start of a line, keys and whatever looks like one replaced."""
    for name in _SECRETS:
        if environ.get(name):
            line = line.replace(environ[name], HIDDEN)
    return _SECRET.sub(HIDDEN, redact(line, environ))[:300]
