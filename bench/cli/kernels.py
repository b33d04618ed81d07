"""`bench kernels`: dense and packed products of layer shapes, timed against each other on this machine."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from bench.cli import complete
from bench.cli.failures import INTERRUPTED, Session, one_line, resume_line, say_error, say_warning

if TYPE_CHECKING:
    from bench.plan.kernels import KernelSettings, Problem
    from bench.run.kernels import Figure, Outcome

__all__ = ["command"]

_EPILOG = """
\b
Examples
  bench kernels --shapes 11008x4096 --batch 1,4,16 --sparsity 0.5,0.6 --threads 1
  bench kernels --models 'llama-7b,opt-1.3b' --pattern unstructured,2:4 --dtype float32,bfloat16
  bench kernels --dry-run
"""


@click.command("kernels", epilog=_EPILOG)
@click.option("--shapes", metavar="LIST", help="Rows x columns (outputs x inputs), such as 11008x4096.")
@click.option(
    "--models",
    metavar="LIST",
    shell_complete=complete.models,
    help="Models whose layer shapes to take, up to 1 GiB each; all registered ones.",
)
@click.option("--batch", metavar="LIST", help="Inputs multiplied at once; 1,4,16.")
@click.option("--sparsity", metavar="LIST", help="Shares of zeros anywhere, such as 0.5,0.6; 0.5.")
@click.option("--pattern", metavar="LIST", help="unstructured and N:M (keep N of every M), such as 2:4.")
@click.option("--format", metavar="LIST", help="bitmap, nm (N:M patterns only), csr, dense; all.")
@click.option("--dtype", metavar="LIST", help="Of the values: float32, bfloat16, float16, int8; float32.")
@click.option("--threads", metavar="N", help="CPU threads; all this process may use.")
@click.option("--repeats", metavar="N", help="Timed rounds, after one that warms up; 7.")
@click.option("--out", metavar="DIR", help="The run's folder, or a URL such as s3://bucket/path; bench-out.")
@click.option("--force", is_flag=True, default=None, help="Measure again what is stored.")
@click.option("--dry-run", is_flag=True, default=None, help="Show what would be measured, with estimates.")
@click.option("--quiet", is_flag=True, default=None, help="Errors only.")
@click.option(
    "--json", "as_json", is_flag=True, default=None, help="One JSON object a row on standard output."
)
@click.pass_context
def command(ctx: click.Context, /, **flags: Any) -> int:
    """Time products y = x W' of random matrices with zeros, in turns, in one process, on the CPU.

    Every row is checked against a float64 product at the very mask, and compared with the best dense product there
    is (F.linear, W @ X.T, ours): faster only where the quartiles of their times do not overlap. Matrices that would fit
    in a cache are taken in many copies. Rows are stored under --out and never measured twice under the same code, machine and
    threads.
    """
    session: Session = ctx.find_object(Session) or Session(())
    from bench.plan.kernels import gather, problems

    settings = gather(flags)
    wanted = list(problems(settings))
    if settings.dry_run:
        return _show_plan(settings, wanted)
    from bench.cli.run import prepare_out
    from bench.results.remote import publishing

    session.out = settings.out
    prepare_out(settings.out)
    session.resumable = True
    with publishing(settings.out, say_warning):
        return _execute(settings, wanted, session)


def _execute(settings: KernelSettings, wanted: list[Problem], session: Session) -> int:
    from bench.cli.output import print_json
    from bench.plan.capacity import free_memory
    from bench.results.segments import Store
    from bench.run.kernels import Outcome, run, without_memory
    from bench.run.live import held, termination

    outcome, figures = Outcome(), []
    watch = _silent if settings.quiet else _say
    with held(settings.out), termination(), Store(settings.out, create=True) as store:
        fitting = [without_memory(problem, settings, free_memory("cpu")) for problem in wanted]
        try:
            for figure in run(settings, fitting, store, outcome, watch=watch, command=session.words):
                figures.append(figure)
                if settings.as_json:
                    print_json(figure)
        except KeyboardInterrupt:
            say_error(resume_line(session))
            return INTERRUPTED
    if not settings.as_json and not settings.quiet:
        _show(figures, outcome, settings)
    if outcome.wrong:
        say_error(
            f"{outcome.wrong} of {len(figures)} rows are wrong: their products differ from float64 ones by more than "
            "rounding; the reasons are in the records"
        )
    return 1 if outcome.wrong or not figures else 0


def _show(figures: list[Figure], outcome: Outcome, settings: KernelSettings) -> None:
    from bench.cli.output import console
    from bench.results.remote import named
    from reports.kernels import terminal_kernels

    if figures:
        console().print(terminal_kernels(figures))
    counts = {"measured": outcome.done, "stored already": outcome.cached, "refused": outcome.refused}
    click.echo(", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing done")
    click.echo(f"rows are stored in {one_line(named(settings.out))}")


def _show_plan(settings: KernelSettings, wanted: list[Problem]) -> int:
    from bench.cli.output import bytes_text, counted, duration_text, print_json, print_table
    from bench.plan.kernels import needs
    from bench.results.remote import named

    rows, total = [], 0.0
    for problem in wanted:
        found = needs(problem, settings)
        total += found.seconds if problem.wanted else 0.0
        rows.append((problem, found, "; ".join(f"{name}: {reason}" for name, reason in problem.refused)))
    count = sum(len(problem.wanted) for problem in wanted)
    if settings.as_json:
        print_json(
            {
                "rows": count,
                "seconds": total,
                "problems": [
                    {
                        "shape": problem.shape,
                        "dtype": problem.dtype,
                        "target": problem.target,
                        "rows": len(problem.wanted),
                        "memory_bytes": found.memory,
                        "seconds": found.seconds,
                        "refused": dict(problem.refused),
                    }
                    for problem, found, _ in rows
                ],
            }
        )
        return 0
    print_table(
        ("shape", "dtype", "zeros", "rows", "memory", "time", "refused"),
        [
            (
                *(problem.shape, problem.dtype, problem.target, len(problem.wanted)),
                *(bytes_text(found.memory), duration_text(found.seconds), refused or "-"),
            )
            for problem, found, refused in rows
        ],
        f"{counted(count, 'row')} of {counted(len(wanted), 'problem')} (all figures are estimates)",
    )
    click.echo(
        f"in all: {duration_text(total)} at {settings.threads} threads; rows go to {named(settings.out)}"
    )
    return 0


def _say(text: str) -> None:
    stamp = datetime.now().astimezone().strftime("%H:%M:%S")
    print(f"{stamp} {one_line(text)}", file=sys.stderr, flush=True)


def _silent(_text: str) -> None:
    """Says nothing."""
