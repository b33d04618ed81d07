"""`bench pull`: models into the cache, before a run needs them."""

from __future__ import annotations

import sys

import click

from bench.cli import complete
from bench.cli.failures import one_line, say_error

__all__ = ["command"]


@click.command("pull", epilog="\b\nExample\n  bench pull smollm2-135m opt-125m --yes")
@click.argument("models", nargs=-1, required=True, shell_complete=complete.models)
@click.option("--yes", is_flag=True, help="Agree to large downloads.")
@click.option("--quiet", is_flag=True, help="Errors only.")
def command(models: tuple[str, ...], yes: bool, quiet: bool) -> int:
    """Fetch models into the cache (BENCH_CACHE or ~/.cache/prune-bench); those there are checked.

    MODELS are ids or globs, apart or separated by commas. One that cannot be had does not keep the others.
    """
    from bench.models.load import pull
    from bench.models.registry import match
    from bench.plan.grammar import parse_list
    from methods.errors import PruneBenchError

    def progress(text: str) -> None:
        if not quiet:
            print(one_line(text), file=sys.stderr, flush=True)

    codes = []
    for model in match(parse_list(models, "MODELS")):
        try:
            checkpoint = pull(model, yes=yes, progress=progress)
        except PruneBenchError as error:
            say_error(error)
            codes.append(error.exit_code)
            continue
        if not quiet:
            label = f" ({checkpoint.label})" if checkpoint.label else ""
            click.echo(f"{checkpoint.id}{label}: {checkpoint.path} at {checkpoint.revision}")
    return max(codes, default=0)
