"""`bench status`: how far a run is, from the files it leaves; never changes them."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from bench.cli.failures import Session, one_line
from bench.cli.output import console, print_json, print_table
from bench.cli.places import Place

__all__ = ["command", "inspect"]

_FILE_LIMIT = 64 << 20
_OVER = ("done", "cached", "refused", "failed")


@click.command("status")
@click.option("--out", type=Place(), default="bench-out", help="The run's folder or URL; bench-out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_context
def command(ctx: click.Context, out: Path, as_json: bool) -> None:
    """Show whether the run in a folder is running, finished, interrupted or dead, and how to resume."""
    session: Session = ctx.find_object(Session) or Session(())
    session.out = out
    found = inspect(out)
    if as_json:
        print_json(found)
        return
    screen = console()
    screen.print(f"{found['out']}: {found['state']}{_who(found)}")
    counts = found["cells"]
    if counts:
        total = sum(counts.values())
        over = sum(counts.get(state, 0) for state in _OVER)
        parts = ", ".join(f"{count} {state}" for state, count in counts.items())
        screen.print(f"cells: {over} of {total} over ({parts})")
    for cell in found["current"]:
        screen.print(f"{'now' if found['state'] == 'running' else 'stopped in'}: {cell}")
    screen.print(f"records: {', '.join(f'{n} {s}' for s, n in found['records'].items()) or 'none'}")
    for torn in found["damaged"]:
        screen.print(f"damaged: {torn}")
    if found["problems"]:
        print_table(
            ("cell", "status", "reason"), [(p["cell"], p["status"], p["reason"]) for p in found["problems"]]
        )
    if found["resume"]:
        screen.print(f"resume with: {found['resume']}")


def inspect(out: Path) -> dict[str, Any]:
    """State of the run in ``out``: ``running``, ``finished``, ``interrupted``, ``dead`` or ``unknown``.

    Raises UserError where ``out`` holds no run, StoreError where its store cannot be read.
    """
    from bench.results.remote import named
    from methods.errors import UserError

    if not out.is_dir():
        raise UserError(f"--out '{one_line(out)}' is not there; give the folder of a run")
    live, holder = _read(out / "run.json"), _read(out / "run.holder.json")
    if not live and not holder and not (out / "store.json").is_file():
        raise UserError(f"--out '{one_line(named(out))}' holds no run; give the folder of one")
    state = _state(live, holder)
    listed = live.get("cells")
    cells = [cell for cell in listed if isinstance(cell, dict)] if isinstance(listed, list) else []
    records, damaged, problems = _records(out)
    return {
        "out": named(out),
        "state": state,
        "pid": live.get("pid") or holder.get("pid"),
        "host": live.get("host") or holder.get("host"),
        "started": live.get("started"),
        "updated": live.get("updated"),
        "cells": dict(Counter(str(cell.get("state", "waiting")) for cell in cells)),
        "current": [_now(cell) for cell in cells if cell.get("state") == "running"],
        "records": records,
        "damaged": damaged,
        "problems": problems,
        "resume": _resume(live) if state in ("interrupted", "dead") else None,
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be missing, half there or not ours: then an empty one."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_FILE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(live: dict[str, Any], holder: dict[str, Any]) -> str:
    said = str(live.get("state") or ("running" if holder else "unknown"))
    if said != "running":
        return said if said in ("finished", "interrupted") else "unknown"
    pid, host = live.get("pid") or holder.get("pid"), live.get("host") or holder.get("host")
    if host != socket.gethostname() or not isinstance(pid, int):
        # Another machine's processes cannot be seen from here.
        return "running"
    return "running" if _alive(pid, live.get("started")) else "dead"


def _alive(pid: int, started: object) -> bool:
    """Whether the process is there and is the one that began the run, not a later one with its number."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        born = process.create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    with contextlib.suppress(ValueError, TypeError):
        return born <= datetime.fromisoformat(str(started)).timestamp() + 5
    return True


def _records(out: Path) -> tuple[dict[str, int], list[str], list[dict[str, str]]]:
    if not (out / "store.json").is_file():
        return {}, [], []
    from bench.results.current import current
    from bench.results.segments import Store

    store = Store(out)
    records = current(store.history())
    problems = [
        {
            "cell": f"{record.model} {record.method} {record.target}{_trained(record.parameters)}",
            "status": record.status,
            "reason": one_line(record.reason),
        }
        for record in records
        if record.status != "done"
    ]
    return dict(Counter(record.status for record in records)), [str(torn) for torn in store.torn], problems


def _now(cell: dict[str, Any]) -> str:
    seed = "" if cell.get("seed") is None else f" seed {cell['seed']}"
    phase = f", {cell['phase']} {cell.get('done', 0)}/{cell.get('total', 0)}" if cell.get("phase") else ""
    return one_line(
        f"{cell.get('model')} {cell.get('method')} {cell.get('target')}{_trained(cell)}{seed}{phase}"
    )


def _resume(live: dict[str, Any]) -> str | None:
    words = live.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return None
    return one_line(shlex.join(words if words[0] == "bench" else ["bench", *words]))


def _who(found: dict[str, Any]) -> str:
    if found["pid"] is None:
        return ""
    since = f", started {found['started']}" if found["started"] else ""
    return f" (process {found['pid']} on {found['host']}{since})"


def _trained(said: Mapping[str, Any]) -> str:
    """What trained the model after pruning, as a record or a run's state says."""
    return f" with {said['recovery']}" if said.get("recovery") else ""
