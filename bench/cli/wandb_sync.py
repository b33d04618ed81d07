"""`bench wandb-sync`, and what `bench run --wandb` does when everything is measured."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.failures import Session, say_error, say_warning
from bench.cli.places import Place

if TYPE_CHECKING:
    from bench.mirror.mirror import Uploaded, Written
    from bench.plan.settings import Settings
    from reports.pages import Report

__all__ = ["after_run", "command"]

_EPILOG = """
\b
Examples
  bench wandb-sync --out bench-out
  bench wandb-sync --out bench-out --wandb-project pruning --wandb-entity my-team --wandb-tags nightly
  bench wandb-sync --offline
"""


@click.command("wandb-sync", epilog=_EPILOG)
@click.option(
    "--out",
    metavar="DIR",
    type=Place(),
    default="bench-out",
    help="The run's folder or URL; bench-out.",
)
@click.option("--wandb-project", "project", metavar="NAME", help="Or WANDB_PROJECT; as last, prune-bench.")
@click.option("--wandb-entity", "entity", metavar="NAME", help="User or team; or WANDB_ENTITY; as last.")
@click.option("--wandb-tags", "tags", metavar="LIST", help="Tags for every run; or WANDB_TAGS; as last.")
@click.option("--offline", is_flag=True, help="Write the offline runs only; ask no network.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    out: Path,
    project: str | None,
    entity: str | None,
    tags: str | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Mirror the results under --out, whoever ran them and how, as W&B runs, and upload what the server lacks.

    Runs are written under DIR/wandb first. Ids come from the store and its cells: nothing is uploaded twice, and a
    repeated command goes on where one stopped. Exit codes: 0 all is there, 1 something could not be uploaded.
    """
    session: Session = ctx.find_object(Session) or Session(())
    from bench.cli.report import check_out
    from bench.mirror.mirror import Asked, mirror, upload
    from bench.plan.mirroring import check_entity, check_project, check_tags

    asked = Asked(check_project(project), check_entity(entity), check_tags(tags))
    check_out(out)
    session.out = out
    session.resumable = True
    with _telling("writing W&B runs", as_json):
        written = mirror(out, asked)
    uploaded = None
    if not offline:
        with _telling("uploading W&B runs", as_json):
            uploaded = upload(out, asked)
    _show(written, uploaded, as_json=as_json, quiet=False)
    if uploaded is not None and uploaded.failed:
        say_error(_incomplete(uploaded))
        return 1
    return 0


def after_run(settings: Settings, report: Report) -> None:
    """Mirror a finished run, with its report, as its settings ask; whatever fails is one line of warning, and the run stands."""
    from bench.mirror.mirror import Asked, mirror, upload

    asked = Asked(settings.wandb_project, settings.wandb_entity, settings.wandb_tags)
    silent = settings.as_json or settings.quiet
    uploaded = None
    try:
        with _telling("writing W&B runs", silent):
            written = mirror(settings.out, asked, report=report.paths)
        if settings.wandb == "online":
            with _telling("uploading W&B runs", silent):
                uploaded = upload(settings.out, asked)
    except Exception as error:  # a mirror is never worth a run
        say_warning(error)
        return
    _show(written, uploaded, as_json=settings.as_json, quiet=settings.quiet)
    if uploaded is not None and uploaded.failed:
        say_warning(_incomplete(uploaded))


def _telling(text: str, silent: bool) -> AbstractContextManager[object]:
    """Say on a terminal what takes its time."""
    from rich.console import Console

    return Console(stderr=True, quiet=silent).status(text)


def _show(written: Written, uploaded: Uploaded | None, *, as_json: bool, quiet: bool) -> None:
    from bench.cli.output import counted, print_json

    if as_json:
        found: dict[str, Any] = {"event": "wandb", "written": written.written, "unchanged": written.unchanged}
        if uploaded is not None:
            found |= {"uploaded": uploaded.uploaded, "already": uploaded.already, "failed": uploaded.failed}
        print_json(found)
    elif not quiet:
        parts = [f"{counted(written.written, 'run')} written, {written.unchanged} unchanged"]
        if uploaded is not None:
            parts.append(f"{uploaded.uploaded} uploaded, {uploaded.already} there already")
        click.echo(f"wandb: {'; '.join(parts)}")


def _incomplete(uploaded: Uploaded) -> str:
    return (
        f"{uploaded.failed} W&B runs are not, or not wholly, uploaded ({uploaded.reason}); they are kept offline, "
        "bench wandb-sync uploads them later"
    )
