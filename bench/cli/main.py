"""The `bench` command: finds the subcommand, runs it, turns every failure into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from bench.cli.failures import Session, explain

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS = {
    "run": ("bench.cli.run", "Prune models by every method asked for and measure what it cost and bought."),
    "list": ("bench.cli.listing", "Show known models, methods, protocols, texts, targets and evaluations."),
    "kernels": ("bench.cli.kernels", "Time dense and packed products of layer shapes against each other."),
    "pull": ("bench.cli.pull", "Fetch models into the cache."),
    "status": ("bench.cli.status", "Show how far a run is: live, dead or finished."),
    "doctor": ("bench.cli.doctor", "Check this installation and machine."),
    "report": ("bench.cli.report", "Show or write the report of a run."),
    "wandb-sync": ("bench.cli.wandb_sync", "Mirror a run's results to Weights & Biases, and upload them."),
    "published": ("bench.cli.published", "Show the figures that papers print, with their sources."),
    "reproduce": ("bench.cli.reproduce", "Run what would reproduce a published table."),
    "compare": ("bench.cli.compare", "Judge a run against a baseline: what got better or worse."),
    "leaderboard": ("bench.cli.leaderboard", "Rank methods over stores, where their figures compare."),
    "completion": ("bench.cli.completion", "Print a shell completion script."),
}

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are named; their one-line help is known without that."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            found = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean '{found[0]}'?" if found else ""
            ctx.fail(f"unknown command '{name[:60]}'{hint or '; known: ' + ', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"bench {version('prune-bench')}")
        except PackageNotFoundError:
            click.echo("bench (not installed: running from a source tree)")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings=_HELP, invoke_without_command=True)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """What does each one-shot pruning method cost and buy, on this model, on this machine?

    \b
    bench run --methods sparsegpt,magnitude --models nano-*
    bench run --methods sparsegpt,magnitude --models opt-* --sparsity 0.5,0.6 --dry-run
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, having printed at most one line about a failure."""
    words = list(sys.argv[1:] if argv is None else argv)
    _quieten()
    session = Session(tuple(words))
    try:
        if instruction := os.environ.get("_BENCH_COMPLETE"):
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, "bench", "_BENCH_COMPLETE", instruction)
        # Not cli.main(), which has its own ideas about what an interruption prints.
        with cli.make_context("bench", words, obj=session) as context:
            code: Any = cli.invoke(context)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        return explain(error, session)
    return code if isinstance(code, int) else 0


def _quieten() -> None:
    """Libraries speak through our own lines only; a user's own settings stand."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DATASETS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
