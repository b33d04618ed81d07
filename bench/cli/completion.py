"""`bench completion SHELL`: the script that a shell sources."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

_WHERE = {
    "bash": 'eval "$(bench completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(bench completion zsh)"  in ~/.zshrc',
    "fish": "bench completion fish > ~/.config/fish/completions/bench.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(_WHERE.values()))
@click.argument("shell", type=click.Choice(tuple(_WHERE)))
def command(shell: str) -> None:
    """Print the completion script of a shell: models, methods and protocols complete too."""
    from bench.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for '{shell}'")
    click.echo(kind.source_template % kind(cli, {}, "bench", "_BENCH_COMPLETE").source_vars())
