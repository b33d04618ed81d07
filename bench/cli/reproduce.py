"""`bench reproduce`: the runs that would give a published table, and ours beside it afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import run as run_command
from bench.cli.failures import Session, say_warning
from bench.cli.output import counted, print_json, print_table

if TYPE_CHECKING:
    from bench.plan.reproduce import LeftOut
    from bench.published.recipes import Recipe

__all__ = ["command"]

_EPILOG = """
\b
Examples
  bench reproduce
  bench reproduce sparsegpt/table1 --dry-run
  bench reproduce sparsegpt/table1 --models opt-125m,opt-1.3b --device cuda --out table1
  bench reproduce wanda/table3 --yaml
"""
_KEPT = (
    *(
        "device",
        "dtype",
        "hessian_dtype",
        "schedule",
        "threads",
        "hidden_budget",
        "memory_budget",
        "rates",
        "seeds",
        "limit",
    ),
    *("save", "save_as", "out", "data_dir", "yes", "force", "dry_run", "quiet", "as_json"),
    *("wandb", "wandb_project", "wandb_entity", "wandb_tags"),
)
"""Options of `bench run` that leave what a table measures as it is, or are told apart by the comparison."""


def _kept_options() -> list[click.Parameter]:
    return [parameter for parameter in run_command.command.params if parameter.name in _KEPT]


def _main(recipe: str | None, models: str | None, methods: str | None, *, as_yaml: bool, **flags: Any) -> int:
    """Run what would reproduce a published table, or list the tables.

    A recipe is derived from the published figures: models x methods x targets under the paper's protocol. What no
    run gives is named with its reason. Figures of the same protocol are shown with their difference afterwards.
    """
    context = click.get_current_context()
    session: Session = context.find_object(Session) or Session(())
    from bench.plan.grammar import parse_list
    from bench.plan.reproduce import Narrowing, plan_of, runs_of
    from bench.published.recipes import recipe as named
    from bench.results.remote import publishing

    if recipe is None:
        _list(as_json=bool(flags.get("as_json")))
        return 0
    found = named(recipe)
    narrowing = Narrowing(
        parse_list(models, "--models") if models is not None else (),
        parse_list(methods, "--methods") if methods is not None else (),
    )
    runs, left = runs_of(found, narrowing)
    if as_yaml:
        _print_yaml(found, runs)
        return 0
    plan = plan_of(found, runs, flags, session.words)
    settings = plan.settings
    session.out = settings.out
    run_command.check_evaluations(settings)
    if settings.dry_run:
        from bench.cli.dry_run import show

        _describe(found, left, as_json=settings.as_json)
        whole = plan.cells
        plan, stored = run_command.fitted(plan)
        # what every cell needs, also where it is another machine that has it
        show(replace(plan, cells=whole), stored)
        return 0 if plan.cells else 1
    if not (settings.quiet or settings.as_json):
        _describe(found, left, as_json=False)
    with publishing(settings.out, say_warning):
        plan, _ = run_command.fitted(plan)
        run_command.prepare_out(settings.out)
        session.resumable = True
        code = run_command.execute(plan, session)
    if not (settings.quiet or settings.as_json):
        _beside(found, settings.out)
    return code


def _list(*, as_json: bool) -> None:
    from bench.published.recipes import recipes

    rows = []
    for name, found in recipes().items():
        given = sum(step.figures for step in found.steps)
        reasons = list(dict.fromkeys(omission.reason for omission in found.omissions))
        rows.append((name, found.source.title, len(found.rows), given, len(found.rows) - given, reasons))
    names = ("recipe", "source", "figures", "given", "left_out", "reasons")
    if as_json:
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    print_table(
        ("recipe", "source", "figures", "given", "left out", "why"),
        [
            (*row[:5], row[5][0] + (f" (and {len(row[5]) - 1} more)" if row[5][1:] else "") if row[5] else "")
            for row in rows
        ],
        f"{counted(len(rows), 'published table')}; bench reproduce NAME --dry-run shows the plan of one",
    )


def _describe(found: Recipe, left: list[LeftOut], *, as_json: bool) -> None:
    given = sum(step.figures for step in found.steps)
    if as_json:
        print_json(
            {
                "recipe": found.name,
                "source": found.source.title,
                "tables": found.tables,
                "figures": len(found.rows),
                "given": given,
                "omitted": [
                    {"what": entry.what, "figures": entry.figures, "reason": entry.reason}
                    for entry in found.omissions
                ],
                "left_out": [{"what": entry.what, "reason": entry.reason} for entry in left],
            }
        )
        return
    click.echo(
        f"{found.name}: {found.source.title}, {', '.join(found.tables)}; {counted(len(found.rows), 'figure')}, "
        f"{given} of them from {counted(len(found.steps), 'run')} (--yaml prints them)"
    )
    omitted = [
        (entry.what, f"{counted(entry.figures, 'figure')}: {entry.reason}") for entry in found.omissions
    ]
    omitted += [(entry.what, entry.reason) for entry in left]
    if omitted:
        print_table(("left out", "why"), omitted)


def _print_yaml(found: Recipe, runs: list[dict[str, Any]]) -> None:
    import yaml

    for index, run in enumerate(runs, 1):
        text = yaml.safe_dump(run, sort_keys=False, default_flow_style=None, width=100)
        click.echo(
            f"# {found.name}, run {index} of {len(runs)}: bench run --config FILE.yaml\n---\n{text}", nl=False
        )


def _beside(found: Recipe, out: Path) -> None:
    """Ours beside the figures of this table, those of the same protocol with their difference."""
    from reports.comparison import compare
    from reports.load import load
    from reports.published import beside, published_tables

    lines = {row.line for row in found.rows}
    tables = published_tables(beside(compare(load(out).records), lines=lines))
    for table in tables:
        print_table(table.columns, table.rows, table.caption)
    if not tables:
        click.echo("no figure of this table has been measured")


command = click.Command(
    "reproduce",
    callback=_main,
    help=_main.__doc__,
    epilog=_EPILOG,
    params=[
        click.Argument(["recipe"], required=False, metavar="[RECIPE]"),
        click.Option(["--models"], metavar="LIST", help="Only these of the table's models; globs."),
        click.Option(["--methods"], metavar="LIST", help="Only these of its methods; globs."),
        click.Option(
            ["--yaml", "as_yaml"], is_flag=True, help="Print the runs as files for bench run --config."
        ),
        *_kept_options(),
    ],
)
