"""How a failure reaches the user: one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import click

from bench.results.redact import redact, redact_command
from methods.errors import PruneBenchError

__all__ = ["INTERRUPTED", "Session", "explain", "one_line", "resume_line", "say_error", "say_warning"]

INTERRUPTED = 130

_MACHINE = {
    errno.ENOSPC: "the disk is full; free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EROFS: "the file system is read-only; choose another folder with --out",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "not permitted; choose a folder you may write to",
    errno.EMFILE: "too many open files; raise the limit with ulimit -n",
    errno.EIO: "the disk reports an error",
    errno.ENOMEM: "not enough memory",
}


@dataclass(slots=True)
class Session:
    """The command as typed, and what a command learns that a failure message needs."""

    words: tuple[str, ...]
    out: Path | None = None
    resumable: bool = False

    @property
    def command(self) -> str:
        """The command as a shell would take it, without secrets."""
        return shlex.join(redact_command(("bench", *self.words)))


def one_line(text: object) -> str:
    """Text on one printable line, without secrets."""
    joined = " ".join(redact(str(text)).split())
    return "".join(character if character.isprintable() else "?" for character in joined)


def say_error(text: object) -> None:
    """One ``error:`` line on standard error."""
    line = f"error: {one_line(text)}"
    encoding = sys.stderr.encoding or "utf-8"
    try:
        print(line.encode(encoding, "replace").decode(encoding), file=sys.stderr, flush=True)
    except OSError:
        return


def say_warning(text: object) -> None:
    """One ``warning:`` line on standard error."""
    click.echo(f"warning: {one_line(text)}", err=True)


def resume_line(session: Session) -> str:
    """How to go on after an interruption."""
    return f"interrupted; finished work is kept, resume with: {session.command}"


def explain(error: BaseException, session: Session) -> int:
    """Say what went wrong in one line; returns the exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has just shown ^C
        say_error(resume_line(session) if session.resumable else "interrupted")
        return INTERRUPTED
    if isinstance(error, PruneBenchError):
        say_error(error)
        return error.exit_code
    if isinstance(error, click.ClickException):
        say_error(_usage(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f" ({error.filename})" if error.filename else ""
        say_error(f"{_MACHINE[error.errno]}{where}")
        return 1
    if isinstance(error, MemoryError):
        say_error("not enough memory; bench run --dry-run shows what each cell needs")
        return 1
    kept = _keep_traceback(error, session)
    at = f"; the traceback is in {kept}" if kept else ""
    say_error(f"unexpected {type(error).__name__}: {one_line(error)[:200]}{at}")
    return 1


def _usage(error: click.ClickException) -> str:
    """Click's message, as our others: lower case, no full stop, one line."""
    text = one_line(error.format_message()).rstrip(".")
    text = text[:1].lower() + text[1:].replace(". (Did", "; (did").replace(". Did", "; did")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f" (see {error.ctx.command_path} --help)"
    return text


def _keep_traceback(error: BaseException, session: Session) -> Path | None:
    """Write the traceback under the run's folder, or the temporary one; None where neither can be written."""
    text = redact("".join(traceback.format_exception(error)))
    name = f"traceback-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
    for folder in (session.out, Path(tempfile.gettempdir())):
        if folder is None or not folder.is_dir():
            continue
        path = folder / name
        try:
            path.write_text(f"{session.command}\n\n{text}", encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path
    return None
