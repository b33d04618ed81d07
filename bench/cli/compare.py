"""`bench compare`: what got better or worse between two stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.failures import Session, one_line
from bench.cli.output import console, print_json
from bench.cli.places import Place

if TYPE_CHECKING:
    from reports.compare.tolerances import Tolerances

__all__ = ["check_store", "command", "read_tolerances"]

_EPILOG = """
\b
Examples
  bench compare baseline bench-out
  bench compare baseline bench-out --tolerances mine.yaml --format markdown > summary.md
"""


@click.command("compare", epilog=_EPILOG)
@click.argument("base", type=Place())
@click.argument("new", type=Place())
@click.option(
    "--tolerances",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="YAML with limits per metric, model, method; laid over the packaged ones.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "markdown", "json")),
    default="table",
    help="table, markdown, json.",
)
@click.option("--all", "everything", is_flag=True, help="Show what did not change, too.")
@click.option("--allow-missing", is_flag=True, help="Cells of BASE that NEW lacks are no regression.")
@click.pass_context
def command(
    ctx: click.Context,
    base: Path,
    new: Path,
    file: Path | None,
    form: str,
    everything: bool,
    allow_missing: bool,
) -> int:
    """Judge the results in folder NEW against those in BASE, joined on model, method, target, seed and protocol.

    A change counts beyond its tolerance and, where a test can tell, when it is significant. Times and memory compare
    in equal environments only, times as ratios to a reference operator timed in the same run. Exit codes: 0 no
    regression, 1 a regression (something worse, or missing or damaged in NEW), 2 wrong usage, a damaged BASE or nothing
    to compare.
    """
    session: Session = ctx.find_object(Session) or Session(())
    check_store("BASE", base)
    check_store("NEW", new)
    from methods.errors import UserError
    from reports.compare.show import as_json, headline, markdown_summary, terminal_summary
    from reports.compare.verdicts import compare_stores

    session.out = None
    changes = compare_stores(base, new, read_tolerances(file), missing_allowed=allow_missing)
    if form == "json":
        print_json(as_json(changes))
    elif form == "markdown":
        click.echo(markdown_summary(changes, everything=everything))
    else:
        console().print(terminal_summary(changes, everything=everything))
    if not changes.compared and not changes.missing:
        raise UserError(f"nothing in '{one_line(new)}' compares with '{one_line(base)}': {headline(changes)}")
    return 1 if changes.regressed else 0


def check_store(name: str, folder: Path) -> None:
    """Raises UserError where `folder` holds no results store."""
    from bench.results.remote import named
    from methods.errors import UserError

    if not folder.is_dir():
        raise UserError(f"{name} '{one_line(folder)}' is not there; give the folder of a run")
    if not (folder / "store.json").is_file():
        raise UserError(f"{name} '{one_line(named(folder))}' holds no results; give the folder of a run")


def read_tolerances(file: Path | None) -> Tolerances:
    """The packaged tolerances with those of `file` over them. Raises UserError for what is no such file."""
    from bench.plan.config_file import read_config
    from methods.errors import UserError
    from reports.compare.tolerances import DEFAULTS, tolerances

    given = read_config(file) if file is not None else None
    try:
        return tolerances(read_config(DEFAULTS), given)
    except ValueError as error:
        raise UserError(f"tolerances '{one_line(file or DEFAULTS)}': {one_line(error)}") from None
