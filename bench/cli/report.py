"""`bench report`: what a run found, on the terminal or in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.cli.failures import Session, one_line
from bench.cli.output import console, print_json
from bench.cli.places import Place

__all__ = ["check_out", "command"]

_FORMATS = ("table", "html", "markdown", "csv", "json", "parquet")
_IMAGES = ("png", "svg", "pdf")


def _images(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(part.strip().lower() for part in value.split(",") if part.strip()))
    for name in named:
        if name not in _IMAGES:
            raise click.BadParameter(f"'{one_line(name)}' is no form of figure; give {', '.join(_IMAGES)}")
    return named


@click.command("report")
@click.option("--out", type=Place(), default="bench-out", help="The run's folder or URL; bench-out.")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    help="table, html, markdown, csv, json, parquet.",
)
@click.option(
    "--figures",
    "images",
    default="",
    callback=_images,
    help="Also write every plot of the overview page as an image: png, svg, pdf, several by commas.",
)
@click.pass_context
def command(ctx: click.Context, out: Path, form: str, images: tuple[str, ...]) -> None:
    """Show a run's figures as a table, tidy CSV, JSON or Markdown on standard output, or write the HTML site.

    CSV has the columns cell,status,model,method,target,seed,protocol,metric,unit,value,recovery and nothing else; so
    has OUT/report/results.parquet, which `--format parquet` writes. Plots go to OUT/report/figures.
    """
    session: Session = ctx.find_object(Session) or Session(())
    session.out = out
    check_out(out)
    if images:
        from reports.images import write_images

        for path in write_images(out, images):
            click.echo(f"figure: {path}")
    if form == "html":
        from reports.pages import write_report

        click.echo(f"report: {write_report(out).page}")
        return
    if form == "parquet":
        from reports.load import write_parquet

        click.echo(f"results: {write_parquet(out)}")
        return
    if images and form == "table":
        return
    from reports.load import load

    found = load(out)
    for damage in found.damage:
        print(f"warning: {one_line(damage)}", file=sys.stderr)
    if form == "csv":
        from reports.tidy_csv import csv_lines

        for line in csv_lines(found.records):
            click.echo(line)
    elif form == "json":
        from bench.results.rows import tidy

        print_json([_plain(row) for row in tidy(found.records)])
    elif form == "markdown":
        from reports.comparison import compare
        from reports.contests import contests
        from reports.markdown import markdown_page
        from reports.verdicts import Values

        comparison = compare(found.records)
        click.echo(markdown_page(found, comparison, contests(comparison.groups, Values(out))))
    else:
        from reports.terminal import terminal_table

        console().print(terminal_table(found.records))


def check_out(out: Path) -> None:
    """Raises UserError where ``out`` is not the folder of a run."""
    from bench.results.remote import named
    from methods.errors import UserError

    if not out.is_dir():
        raise UserError(f"--out '{one_line(out)}' is not there; give the folder of a run")
    if not (out / "store.json").is_file():
        raise UserError(f"--out '{one_line(named(out))}' holds no results; give the folder of a run")


def _plain(row: dict[str, str | int | float | None]) -> dict[str, str | int | float | None]:
    """NaN and infinities as text: JSON has none."""
    value = row["value"]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        row = {**row, "value": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
    return row
