"""Mirroring a store: offline runs first, by a process of its own; uploads after that, by W&B's own `wandb sync`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.mirror.children import OWN, contained, last_line, run, without_secrets
from bench.mirror.ledger import FOLDER, Entry, Ledger, held, outdated
from bench.mirror.runs import Destination
from bench.mirror.server import Account, account
from methods.errors import OutsideError

__all__ = ["Asked", "Uploaded", "Written", "mirror", "upload"]

PROJECT: Final = "prune-bench"
"""The project where none is named."""

_START: Final = 60.0
_WRITE: Final = 5.0
_UPLOAD: Final = 10.0
_AT_ONCE: Final = 50
_RETRIES: Final = {
    "RETRY_MAX": "2",
    "RETRY_WAIT_MIN_SECONDS": "0.5",
    "RETRY_WAIT_MAX_SECONDS": "5",
    "TIMEOUT_SECONDS": "30",
}
"""How wandb-core treats a server that fails, unless the user's environment says otherwise."""


@dataclass(frozen=True)
class Asked:
    """What the user said of the destination; None is left to the environment, the last mirror and defaults, in this order."""

    project: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] | None = None

    def destination(self, ledger: Ledger, environ: Mapping[str, str]) -> Destination:
        """Where runs go."""
        listed = (word.strip()[:64] for word in environ.get("WANDB_TAGS", "").split(","))
        tags = self.tags if self.tags is not None else tuple(word for word in listed if word) or ledger.tags
        return Destination(
            self.project or environ.get("WANDB_PROJECT") or ledger.project or PROJECT,
            self.entity or environ.get("WANDB_ENTITY") or ledger.entity,
            tags,
        )


@dataclass(frozen=True)
class Written:
    """Offline runs written, and those that were up to date."""

    written: int
    unchanged: int


@dataclass(frozen=True)
class Uploaded:
    """Runs uploaded now, those that were there already, and those that failed, with the first reason."""

    uploaded: int
    already: int
    failed: int
    reason: str


def mirror(
    out: Path,
    asked: Asked = Asked(),
    *,
    report: Sequence[Path] = (),
    environ: Mapping[str, str] | None = None,
) -> Written:
    """Write the store in ``out`` as offline runs under OUT/wandb; what is up to date stays as it is. No network.

    ``report`` names the files of the store's report where it was just written; it is rendered otherwise. Raises
    `OutsideError` where the process that writes failed or took too long, `UserError` where another holds the mirror,
    `MachineError` and `StoreError` where files cannot be read or written.
    """
    environ = os.environ if environ is None else environ
    with held(out):
        ledger = Ledger.open(out)
        destination = asked.destination(ledger, environ)
        stale, total = outdated(out, ledger, destination)
        if not stale:
            return Written(0, total)
        ledger.save(out)  # the process that writes knows no URLs: it finds the store's id here
        request = {
            "out": str(out.resolve()),
            "project": destination.project,
            "entity": destination.entity,
            "tags": list(destination.tags),
            "report": [str(path.resolve()) for path in report],
        }
        surroundings = contained(out, environ, keys=False)
        try:
            answer = run(
                ["bench.mirror.writer"],
                surroundings,
                limit=_START + _WRITE * len(stale),
                request=json.dumps(request),
            )
        except OutsideError as error:
            raise OutsideError(f"the W&B offline runs were {error}") from None
        finally:
            shutil.rmtree(out / FOLDER / OWN, ignore_errors=True)
        try:
            written = int(json.loads(answer.out.splitlines()[-1])["written"])
        except (ValueError, IndexError, KeyError, TypeError):
            reason = last_line(answer.err, environ)
            raise OutsideError(f"the W&B offline runs could not be written: {reason}") from None
        return Written(written, total - written)


def upload(out: Path, asked: Asked = Asked(), *, environ: Mapping[str, str] | None = None) -> Uploaded:
    """Upload the offline runs that the server does not have yet; each counts only once all of it has arrived.

    The ledger is written after every batch, so that an interrupted upload goes on where it stopped. Raises
    `MachineError` at once where the server does not answer or refuses the key.
    """
    environ = os.environ if environ is None else environ
    with held(out):
        ledger = Ledger.open(out)
        destination = asked.destination(ledger, environ)
        found = account(environ)
        entity = destination.entity or found.entity
        to = f"{found.host}|{entity}|{destination.project}"
        waiting = {
            run_id: entry
            for run_id, entry in ledger.runs.items()
            if (entry.uploaded, entry.to) != (entry.digest, to)
        }
        already = len(ledger.runs) - len(waiting)
        done, reasons = 0, list[str]()
        for batch in _batches(list(waiting.items())):
            failed = _upload(out, batch, found, entity, destination.project, environ)
            for run_id, entry in batch:
                if run_id in failed:
                    reasons.append(failed[run_id])
                    continue
                ledger.runs[run_id] = entry.model_copy(update={"uploaded": entry.digest, "to": to})
                done += 1
            ledger.save(out)
            if len(failed) == len(batch):
                break
        shutil.rmtree(out / FOLDER / OWN, ignore_errors=True)
        left = len(waiting) - done
        return Uploaded(done, already, left, reasons[0] if reasons else "")


def _batches(waiting: Sequence[tuple[str, Entry]]) -> Iterator[list[tuple[str, Entry]]]:
    for start in range(0, len(waiting), _AT_ONCE):
        yield list(waiting[start : start + _AT_ONCE])


def _upload(
    out: Path,
    batch: list[tuple[str, Entry]],
    account: Account,
    entity: str,
    project: str,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """Upload a batch with `wandb sync`; the reason by run id for every run of which something did not arrive."""
    paths = {
        run_id: (out / FOLDER / entry.folder / f"run-{run_id}.wandb").resolve() for run_id, entry in batch
    }
    for path in paths.values():
        path.with_suffix(".wandb.synced").unlink(missing_ok=True)
    surroundings = contained(out, environ, keys=True) | {"WANDB_BASE_URL": account.url}
    for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER"):
        for name, value in _RETRIES.items():
            surroundings.setdefault(f"WANDB__{part}_{name}", value)
    words = ["wandb", "sync", "--project", project, *(["--entity", entity] if entity else [])]
    limit = _START + _UPLOAD * len(batch)
    with tempfile.TemporaryDirectory(prefix="bench-wandb-") as scratch:
        folder = Path(scratch)
        (folder / "wandb").mkdir()
        surroundings["WANDB_DIR"] = scratch
        try:
            answer = run([*words, *map(str, paths.values())], surroundings, limit=limit, cwd=folder)
            why = last_line(answer.err, environ)
        except OutsideError as error:
            why = str(error)
        said = _errors(folder, environ)
    failed: dict[str, str] = {}
    for run_id, path in paths.items():
        # `wandb sync` calls a run synced even where its files did not get through: its log tells.
        if str(path) in said:
            failed[run_id] = said[str(path)]
            path.with_suffix(".wandb.synced").unlink(missing_ok=True)
        elif not path.with_suffix(".wandb.synced").is_file():
            failed[run_id] = why
    return failed


def _errors(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The first error of every run that wandb-core's log names, by the run's path."""
    found: dict[str, str] = {}
    for log in sorted((folder / "wandb" / "logs").glob("debug-sync*.log")):
        for line in log.read_text("utf-8", "replace").splitlines():
            try:
                entry = json.loads(line)
                level, path, text = entry["level"], entry["sync_path"], str(entry["msg"])
            except (ValueError, KeyError, TypeError):
                continue
            # Single answers are tried again; what is given up has a line of its own.
            if str(level).startswith("ERROR") and not text.startswith("api: HTTP error"):
                detail = f"{text} {entry.get('error', '')}".split("\n")[0].strip()
                found.setdefault(str(path), without_secrets(detail, environ))
    return found
