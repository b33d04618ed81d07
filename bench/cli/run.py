"""`bench run`: from options to a plan, from a plan to records, table and report."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import complete
from bench.cli.failures import INTERRUPTED, Session, one_line, resume_line, say_error, say_warning

if TYPE_CHECKING:
    from bench.plan.cells import Cell, Plan
    from bench.plan.settings import Settings
    from reports.pages import Report

__all__ = ["check_evaluations", "command", "execute", "fitted", "prepare_out"]

_EPILOG = """
\b
Examples
  bench run --methods sparsegpt,magnitude --models nano-*
  bench run --methods sparsegpt --models opt-125m,bloom-560m --sparsity 0.5,0.6 --seeds 0,1,2
  bench run --methods sparsegpt,slicegpt --models nano-* --sparsity 0.5 --slicing 0.1,0.2 --params 0.2
  bench run --methods sparsegpt --models nano-opt --sparsity 0.8 --recover none,full --gradual 1,4
  bench run --models path:/models/mine --pattern unstructured,2:4 --eval perplexity --dry-run
"""

_SETTINGS = {"allow_extra_args": True}


@click.command("run", context_settings=_SETTINGS, epilog=_EPILOG)
@click.option("--models", metavar="LIST", shell_complete=complete.models, help="Ids, globs, path:/dir.")
@click.option(
    "--methods",
    metavar="LIST",
    shell_complete=complete.methods,
    help="rule[@allocation][+refinement]; magnitude,sparsegpt.",
)
@click.option("--sparsity", metavar="LIST", help="Shares of the weights to remove, such as 0.5,0.6; 0.5.")
@click.option("--pattern", metavar="LIST", help="unstructured and N:M (keep N of every M), such as 2:4.")
@click.option(
    "--slicing", metavar="LIST", help="Shares of the width to slice (slicegpt), such as 0.25; 0.25."
)
@click.option(
    "--params", "fewer_params", metavar="LIST", help="Sizes to reach: shares of the parameters to save."
)
@click.option("--bytes", "fewer_bytes", metavar="LIST", help="Sizes to reach: shares of the bytes to save.")
@click.option("--bits", metavar="LIST", help="Quantise too, each target on grids of 2, 3, 4 or 8 bits; none.")
@click.option(
    "--layers", metavar="CLAUSES", help="Matrices to work on, such as blocks=0-3,only=mlp,except=down; all."
)
@click.option(
    "--recover",
    metavar="LIST",
    shell_complete=complete.recoveries,
    help="Train the pruned models on the calibration text, each way by itself: none, lora, full; none.",
)
@click.option(
    "--gradual",
    metavar="LIST",
    help="Stages of pruning and training (--recover), such as 1,4; 1 is a single pruning; 1.",
)
@click.option("--seeds", metavar="LIST", help="Seeds of the calibration draw; 0.")
@click.option("--calibration", metavar="TEXT", shell_complete=complete.texts, help="Calibration text.")
@click.option("--samples", metavar="N", help="Calibration windows.")
@click.option("--length", metavar="N", help="Tokens per calibration window.")
@click.option(
    "--protocol",
    metavar="NAME",
    shell_complete=complete.protocols,
    help="nano (packaged models), lab, paper.",
)
@click.option(
    "--text",
    metavar="TEXT",
    shell_complete=complete.texts,
    help="Evaluation text; kjv/validation to choose on.",
)
@click.option("--eval-length", metavar="N", help="Tokens per evaluation window; 0 is the model's context.")
@click.option("--windows", metavar="N", help="Evaluation windows, spread over the text; 0 is all.")
@click.option(
    "--eval",
    "evaluations",
    metavar="LIST",
    shell_complete=complete.evaluations,
    help="perplexity (default), zeroshot, decode.",
)
@click.option(
    "--tasks",
    metavar="LIST",
    shell_complete=complete.tasks,
    help="Zero-shot tasks of lm-evaluation-harness and suites (suite:wanda); piqa and ten more, or kjv's.",
)
@click.option("--shots", metavar="N", help="Solved examples in front of every item; 0.")
@click.option("--limit", metavar="N", help="Items of each zero-shot task; all.")
@click.option(
    "--packed", is_flag=True, default=None, help="Score zero-shot tasks through packed linears (CPU)."
)
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N.")
@click.option("--dtype", metavar="NAME", help="auto, float32, bfloat16, float16.")
@click.option("--hessian-dtype", metavar="NAME", help="float32, float64.")
@click.option("--schedule", metavar="NAME", help="sequential, blockwise.")
@click.option("--threads", metavar="N", help="CPU threads; all this process may use.")
@click.option("--hidden-budget", metavar="SIZE", help="Hidden states kept in memory; 2GiB.")
@click.option(
    "--memory-budget", metavar="SIZE", help="Peak memory of a cell, such as 8GiB; what the machine has."
)
@click.option(
    "--rates",
    metavar="LIST",
    help="With --dry-run, another machine: memory=80GiB,flops=150e12,flops32=40e12,read=3GB.",
)
@click.option(
    "--set",
    "assignments",
    metavar="NAME.PARAMETER=VALUE",
    multiple=True,
    shell_complete=complete.parameters,
    help="Set a parameter of a method, allocation, refinement or recovery.",
)
@click.option("--save", is_flag=True, default=None, help="Keep the pruned models, dense with zeros.")
@click.option(
    "--save-as",
    metavar="LIST",
    shell_complete=complete.forms,
    help="Keep them as dense, bitmap, quantised.",
)
@click.option(
    "--executor",
    metavar="NAME",
    help="local (this process, one cell after another) or ray (a cluster); local.",
)
@click.option(
    "--ray-address", metavar="ADDRESS", help="HOST:PORT of a Ray cluster, or auto; one of this machine."
)
@click.option(
    "--calibration-workers",
    metavar="N",
    help="With --executor ray, processes that share the calibration of one cell; 1.",
)
@click.option("--out", metavar="DIR", help="The run's folder, or a URL such as s3://bucket/path; bench-out.")
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="YAML with these options; flags win."
)
@click.option("--data-dir", metavar="DIR", help="Texts; or BENCH_DATA_DIR.")
@click.option(
    "--wandb", metavar="MODE", help="Mirror results to Weights & Biases: off, offline, online; off."
)
@click.option("--wandb-project", metavar="NAME", help="W&B project; or WANDB_PROJECT; prune-bench.")
@click.option("--wandb-entity", metavar="NAME", help="W&B user or team; or WANDB_ENTITY.")
@click.option("--wandb-tags", metavar="LIST", help="Tags for every W&B run; or WANDB_TAGS.")
@click.option("--yes", is_flag=True, default=None, help="Agree to large downloads.")
@click.option("--force", is_flag=True, default=None, help="Compute again what is stored.")
@click.option("--dry-run", is_flag=True, default=None, help="Show the plan; load no weights, ask no network.")
@click.option("--quiet", is_flag=True, default=None, help="Errors and the report's path only.")
@click.option(
    "--json", "as_json", is_flag=True, default=None, help="One JSON object a line on standard output."
)
@click.pass_context
def command(ctx: click.Context, /, config: Path | None, **flags: Any) -> int:
    """Prune every model by every method at every target, then measure.

    Lists are separated by commas. Finished work is stored under --out and never done twice: the same command
    resumes an interrupted run. Exit codes: 0 done, 1 a cell failed or all were refused, 2 wrong usage,
    130 interrupted.
    """
    session: Session = ctx.find_object(Session) or Session(())
    _refuse_extra(ctx)
    flags["assignments"] = flags["assignments"] or None

    from bench.plan.cells import expand
    from bench.plan.settings import gather
    from bench.results.remote import publishing

    settings = gather(flags, config, session.words)
    session.out = settings.out
    check_evaluations(settings)
    if settings.executor == "ray" and not settings.dry_run:
        from bench.executors.ray.cluster import installed

        installed()
    plan = expand(settings)
    if settings.dry_run:
        from bench.cli.dry_run import show

        plan, stored = fitted(plan)
        show(plan, stored)
        return 0 if plan.cells else 1
    # what lies at a URL is fetched first: cells that are there already are never refused
    with publishing(settings.out, say_warning):
        plan, _ = fitted(plan)
        prepare_out(settings.out)
        session.resumable = True
        return execute(plan, session)


def _refuse_extra(ctx: click.Context) -> None:
    """Words that belong to no option: nearly always a glob that the shell expanded, or a list with spaces."""
    if not ctx.args:
        return
    words = [one_line(word)[:40] for word in ctx.args]
    if any(Path(word).exists() for word in ctx.args):
        why = "the shell seems to have replaced a * by file names; quote it, as in --models 'opt-*'"
    else:
        why = "separate lists by commas, as in --models 'opt-*,bloom-*'"
    more = f" and {len(words) - 1} more" if len(words) > 1 else ""
    raise click.UsageError(f"'{words[0]}'{more} belongs to no option; {why}", ctx)


def check_evaluations(settings: Settings) -> None:
    """Raises UserError for an evaluation or a task that is not available."""
    from bench.evaluate import available
    from bench.plan.grammar import nearest, shown
    from methods.errors import UserError

    known = available()
    for name in settings.evaluations:
        if name not in known:
            raise UserError(
                f"--eval '{shown(name)}' is not available in this version; available: {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    if "zeroshot" in settings.evaluations:
        from bench.evaluate.zeroshot.tasks import check

        check(settings.tasks)


def prepare_out(out: Path) -> None:
    """Make the run's folder and see that it takes files. Raises MachineError or UserError."""
    from methods.errors import MachineError, UserError

    if out.exists() and not out.is_dir():
        raise UserError(f"--out '{one_line(out)}' is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        why = (error.strerror or "cannot be written").lower()
        name = one_line(out)
        raise MachineError(f"--out '{name}' cannot be written: {why}; choose another") from None


def fitted(plan: Plan) -> tuple[Plan, frozenset[Cell]]:
    """A plan with what this machine cannot serve refused, and the cells that are stored already."""
    from bench.plan.resources import fit
    from bench.plan.stored import stored

    settings = plan.settings
    there = frozenset() if settings.force else stored(plan.cells, settings.out, settings.saved)
    return fit(plan, stored=there), there


def execute(plan: Plan, session: Session) -> int:
    """Run a plan, show its table, write its report; returns the exit code."""
    from bench.cli.console import observer_for

    settings = plan.settings
    if settings.executor == "ray":
        from bench.executors.ray.run import execute as executor
    else:
        from bench.executors.local import execute as executor
    if settings.yes:
        _fetch_large(plan)
    observer = observer_for(settings)
    try:
        outcome = executor(plan, settings.out, observer, force=settings.force, save=settings.saved)
    finally:
        observer.close()
    report = _report(settings)
    if report is not None and settings.wandb != "off" and not outcome.interrupted:
        from bench.cli.wandb_sync import after_run

        after_run(settings, report)
    counts = {
        "done": outcome.done,
        "cached": outcome.cached,
        "refused": outcome.refused,
        "failed": outcome.failed,
        "interrupted": bool(outcome.interrupted),
    }
    _summarise(settings, counts, report.page if report is not None else None)
    if outcome.interrupted:
        say_error(resume_line(session))
        return INTERRUPTED
    return 1 if outcome.failed or not (outcome.done or outcome.cached) else 0


def _fetch_large(plan: Plan) -> None:
    """Make the large downloads that --yes agrees to; a run itself fetches small models only."""
    from bench.models.hub import ASK_FROM
    from bench.models.load import pull
    from bench.models.registry import get
    from bench.plan.resources import estimate
    from methods.errors import PruneBenchError

    def progress(text: str) -> None:
        if not (plan.settings.quiet or plan.settings.as_json):
            click.echo(one_line(text), err=True)

    large = {cell.model: None for cell in plan.cells if estimate(cell).download_bytes > ASK_FROM}
    for model in large:
        # Pickled weights are converted by `bench pull` alone; a failure is the cell's to record.
        if not get(model).bin_only:
            with contextlib.suppress(PruneBenchError):
                pull(model, yes=True, progress=progress)


def _report(settings: Settings) -> Report | None:
    """Show the table and write the report; None where there is no record to report."""
    from reports.load import load
    from reports.pages import write_report
    from reports.terminal import terminal_table

    records = load(settings.out).records
    if not records:
        return None
    if not settings.quiet and not settings.as_json:
        from bench.cli.output import console

        console().print(terminal_table(records))
    return write_report(settings.out)


def _summarise(settings: Settings, counts: dict[str, Any], report: Path | None) -> None:
    from bench.cli.output import print_json

    if settings.as_json:
        print_json({"event": "summary", **counts, "report": str(report) if report else None})
        return
    if not settings.quiet:
        parts = [f"{count} {name}" for name, count in counts.items() if name != "interrupted" and count]
        click.echo(", ".join(parts) or "nothing done")
    if report is not None:
        click.echo(str(report) if settings.quiet else f"report: {report}")
