"""Writes a store's runs as W&B offline runs. A process of its own (`python -m bench.mirror.writer`): wandb starts
a service and changes its process; neither may happen where something is measured.

Standard input is one JSON object (`out`, `project`, `entity`, `tags`, `report`), standard output one (`written`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.mirror.ledger import FOLDER, Entry, Ledger, outdated
from bench.mirror.runs import Destination, MirrorRun, MirrorTable

if TYPE_CHECKING:
    import wandb

__all__ = ["write"]

_ARTIFACTS: Final = "artifacts"


def write(out: Path, destination: Destination, report: tuple[Path, ...] = ()) -> int:
    """Bring the offline runs under OUT/wandb up to date with the store; returns how many were written.

    A run whose records, tags or destination changed is written whole again, under its id. The caller holds the mirror.
    """
    ledger = Ledger.open(out)
    place = str(out.resolve())
    ledger.project, ledger.entity, ledger.tags = destination.project, destination.entity, destination.tags
    stale, _ = outdated(out, ledger, destination)
    with _report(out, any(run.report for run in stale), report) as files:
        for run in stale:
            _clear(out, run.id)
            folder = _write_run(out, run, files)
            known = ledger.runs.get(run.id)
            uploaded, to = (known.uploaded, known.to) if known else ("", "")
            ledger.runs[run.id] = Entry(
                digest=run.digest, folder=folder, place=place, uploaded=uploaded, to=to
            )
            ledger.save(out)
    return len(stale)


def _clear(out: Path, run_id: str) -> None:
    """Remove what an earlier or interrupted mirror wrote of this run."""
    for folder in (out / FOLDER).glob(f"offline-run-*-{run_id}"):
        shutil.rmtree(folder)


@contextlib.contextmanager
def _report(out: Path, wanted: bool, there: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    """The report's files: those there are, or ones written beside the runs for as long as they are copied from."""
    if there or not wanted:
        yield there
        return
    from reports.pages import write_report

    folder = out / FOLDER / ".report"
    try:
        yield write_report(out, folder).paths
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_run(out: Path, mirror: MirrorRun, report: tuple[Path, ...]) -> str:
    """Write one run and return the name of its folder."""
    import wandb

    with wandb.init(settings=_settings(out, mirror), config=mirror.config) as run:
        folder = Path(run.dir).parent
        # What artifacts are made of stays beside the run that needs it, and goes with it.
        os.environ["WANDB_DATA_DIR"] = str(folder / _ARTIFACTS)
        run.define_metric("block", hidden=True)
        run.define_metric("block/*", step_metric="block", summary="none")
        # Rows of the history keep NaN and infinities; what is put into the summary directly does not.
        run.log(dict(mirror.figures))
        for row in mirror.curves:
            run.log(dict(row))
        run.log({name: _table(table) for name, table in mirror.tables.items()})
        run.summary.update(mirror.notes)
        if mirror.report:
            artifact = wandb.Artifact(
                f"report-{mirror.config['store']}", type="report", description="bench report"
            )
            for path in report:
                artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact)
        run.finish(exit_code=mirror.exit_code)
    for rest in ("tmp", "logs"):
        shutil.rmtree(folder / rest, ignore_errors=True)
    return folder.name


def _settings(out: Path, mirror: MirrorRun) -> wandb.Settings:
    """Offline, silent, and with nothing that the records do not hold: no host, code, git, packages, console or metrics."""
    import wandb

    return wandb.Settings(
        mode="offline",
        root_dir=str(out.resolve()),
        run_id=mirror.id,
        run_name=mirror.name,
        run_group=mirror.group,
        run_job_type=mirror.job_type,
        run_tags=mirror.tags,
        run_notes=mirror.reason or None,
        project=mirror.destination.project,
        entity=mirror.destination.entity or None,
        host="",
        console="off",
        silent=True,
        symlink=False,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _table(table: MirrorTable) -> wandb.Table:
    import wandb

    rows: list[Iterable[Any]] = [list(row) for row in table.rows]
    return wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)


def main() -> int:
    """Read the request, write, say what was done."""
    request: dict[str, Any] = json.load(sys.stdin)
    destination = Destination(request["project"], request["entity"], tuple(request["tags"]))
    report = tuple(Path(path) for path in request["report"])
    print(json.dumps({"written": write(Path(request["out"]), destination, report)}))  # noqa: T201 - this module's answer to the process that started it
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
