"""`bench report`: what a run found, on the terminal or in a file."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import click

from bench.cli.failures import Session
from bench.cli.output import console, print_json

__all__ = ["command"]

_FORMATS = ("table", "html", "markdown", "csv", "json")


@click.command("report")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("bench-out"), help="The run's folder; bench-out."
)
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), default="table", help="table, html, markdown, csv, json."
)
@click.pass_context
def command(ctx: click.Context, out: Path, form: str) -> None:
    """Show a run's figures as a table, tidy CSV, JSON or Markdown on standard output, or write the HTML page.

    CSV has the columns cell,status,model,method,target,seed,protocol,metric,unit,value and nothing else.
    """
    session: Session = ctx.find_object(Session) or Session(())
    session.out = out
    if form == "html":
        import reports

        click.echo(f"report: {reports.write_report(out)}")
        return
    from bench.results.rows import COLUMNS, tidy
    from bench.results.segments import Store

    store = Store(out)
    records = store.records()
    for torn in store.torn:
        print(f"warning: set aside: {torn}", file=sys.stderr)
    if form == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(tidy(records))
    elif form == "json":
        print_json([_plain(row) for row in tidy(records)])
    elif form == "markdown":
        import reports

        click.echo(reports.markdown(records), nl=False)
    else:
        import reports

        console().print(reports.terminal_table(records))


def _plain(row: dict[str, str | int | float | None]) -> dict[str, str | int | float | None]:
    """NaN and infinities as text: JSON has none."""
    value = row["value"]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        row = {**row, "value": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
    return row
