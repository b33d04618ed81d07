"""`bench published`: figures that papers print, with where they stand and what to beware of."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import click

from bench.cli.failures import Session
from bench.cli.output import counted, print_json, print_table

if TYPE_CHECKING:
    from bench.published.figures import Figure

__all__ = ["command"]

_EPILOG = """
\b
Examples
  bench published --paper sparsegpt --table table1
  bench published --model 'llama-2-*' --method wanda,sparsegpt --pattern 2:4 --metric perplexity
  bench published --model opt-125m --all --format csv
"""


@click.command("published", epilog=_EPILOG)
@click.option(
    *("--source", "--paper"),
    metavar="LIST",
    help="sparsegpt, wanda, slicegpt, mixgpt, gptq, …, or arXiv numbers.",
)
@click.option("--model", metavar="LIST", help="Models; globs such as 'opt-*'.")
@click.option("--method", metavar="LIST", help="Methods, as the papers name them.")
@click.option("--sparsity", metavar="LIST", help="Shares, such as 0.5.")
@click.option("--pattern", metavar="LIST", help="none, unstructured, slice, 2:4, ….")
@click.option("--metric", metavar="LIST", help="perplexity, ppl_c4, 'acc_*', ….")
@click.option("--table", metavar="LIST", help="Tables, such as 'table 1' or 'figure 8'.")
@click.option("--all", "every", is_flag=True, help="Ablations, copies and repeated rows, too.")
@click.option(
    "--format", "form", type=click.Choice(("table", "csv", "json")), default="table", help="table, csv, json."
)
@click.pass_context
def command(ctx: click.Context, /, form: str, every: bool, **words: str | None) -> None:
    """Show published figures of one-shot pruning, each with its source and what to beware of.

    Lists are separated by commas. CSV has the file's own columns, and `caveats` behind them.
    """
    from bench.plan.grammar import parse_list
    from bench.published.figures import figures
    from bench.published.query import Filters, select

    session: Session = ctx.find_object(Session) or Session(())
    typed = [word.partition("=")[0] for word in session.words]
    flag = next((word for word in reversed(typed) if word in ("--paper", "--source")), "--source")
    lists = {
        name: parse_list(text, flag if name == "source" else f"--{name}")
        for name, text in words.items()
        if text is not None
    }
    rows = select(Filters(**lists, every=every, flag=flag))
    if form == "csv":
        click.echo(_csv(rows), nl=False)
    elif form == "json":
        print_json([_object(row) for row in rows])
    else:
        _show(rows, len(figures()), every=every)


def _show(rows: list[Figure], total: int, *, every: bool) -> None:
    from bench.published.figures import caveats_of, source_of

    texts: dict[str, int] = {}
    shown = []
    for row in rows:
        marks = [texts.setdefault(caveat.text, len(texts) + 1) for caveat in caveats_of(row)]
        bits = "" if row.wbits == 16 else f" {row.wbits:g}-bit"
        share = "" if row.sparsity is None else f"{row.sparsity:g}"
        target = row.pattern if ":" in row.pattern else f"{share} {row.pattern}".strip()
        shown.append(
            (
                *(row.model, row.method, "dense" if row.pattern == "none" else target + bits),
                *(row.metric, row.printed, "-" if row.length is None else row.length or "max"),
                _drawn(row),
                f"{source_of(row).name}, {row.table}" + ("" if row.primary else " (not primary)"),
                " ".join(f"[{mark}]" for mark in marks),
            )
        )
    columns = (
        *("model", "method", "target", "metric", "value"),
        *("window", "calibration", "source", "beware"),
    )
    if shown:
        print_table(columns, shown, f"{counted(len(rows), 'published figure')} of {total}")
    else:
        click.echo(
            "no published figure has all of these" + ("" if every else "; --all looks at ablations, too")
        )
    for text, mark in texts.items():
        click.echo(f"[{mark}] {text}")


def _drawn(row: Figure) -> str:
    if row.samples is None:
        return "not stated" if row.calibration == "unspecified" else "-"
    return f"{row.calibration} {row.samples}x{row.calibration_length or 'max'}"


def _object(row: Figure) -> dict[str, Any]:
    from bench.published.figures import caveats_of, source_of

    source = source_of(row)
    return {
        **row.texts,
        "value": row.value if row.value == row.value else "NaN",
        "printed": row.printed,
        "primary": row.primary,
        "paper": source.name,
        "title": source.title,
        "samples": row.samples,
        "calibration_length": row.calibration_length,
        "caveats": [{"kind": caveat.kind, "text": caveat.text} for caveat in caveats_of(row)],
    }


def _csv(rows: list[Figure]) -> str:
    from bench.published.figures import COLUMNS, caveats_of

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "caveats"])
    for row in rows:
        marks = "; ".join(f"{caveat.kind}: {caveat.text}" for caveat in caveats_of(row))
        writer.writerow([*row.cells, marks])
    return text.getvalue()
