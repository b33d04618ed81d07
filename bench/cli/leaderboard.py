"""`bench leaderboard`: methods ranked over stores; `bench leaderboard add` takes a store in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.compare import check_store
from bench.cli.failures import one_line, say_error
from bench.cli.output import counted, print_json
from bench.cli.places import Place

if TYPE_CHECKING:
    from reports.leaderboard.page import Leaderboard

__all__ = ["command"]

_OUT = click.option(
    "--out",
    metavar="DIR",
    default="leaderboard",
    help="The leaderboard's folder or URL; leaderboard.",
)
_EPILOG = """
\b
Examples
  bench leaderboard studies/nano studies/nano-mixed --out site
  bench leaderboard add bench-out --out site --name mine
  bench leaderboard --out site
"""


class _Group(click.Group):
    """Words that are no subcommand are stores: `bench leaderboard STORE…` builds."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "build", self.commands["build"], args

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options of `build` may come first, or alone: `bench leaderboard --out site`.
        known = {"add", "build", "-h", "--help"}
        return super().parse_args(ctx, args if args and args[0] in known else ["build", *args])


@click.group("leaderboard", cls=_Group, epilog=_EPILOG)
def command() -> None:
    """Rank one-shot methods over any number of stores: by model, target and protocol, only where figures compare.

    STORE… are folders of runs; those that `add` took in are read, too. Writes index.html and feed.json to --out.
    """


@command.command("build")
@click.argument("stores", nargs=-1, type=Place(), metavar="[STORE]...")
@_OUT
def build(stores: tuple[Path, ...], out: str) -> None:
    """Write the leaderboard of the stores, and of those taken in (the default of `bench leaderboard`)."""
    from methods.errors import UserError
    from reports.leaderboard.submission import stores_of

    for store in stores:
        check_store("store", store)
    board = _board(out)
    found = list(dict.fromkeys([*stores, *stores_of(board)]))
    if not found:
        raise UserError(
            f"no stores: name some, or take one in with bench leaderboard add STORE --out '{one_line(out)}'"
        )
    written, page = _write(found, board)
    click.echo(
        f"{counted(written.entries, 'result')} in {counted(written.boards, 'table')} of {counted(len(found), 'store')}"
    )
    click.echo(f"leaderboard: {page}")


def _board(out: str) -> Path:
    """The folder that ``--out`` names; for a URL its spool, with the stores that were taken in there."""
    from bench.results.remote import mirror_of, place
    from reports.leaderboard.submission import FILES, STORES

    board = place(out)
    mirror = mirror_of(board)
    if mirror is not None:
        mirror.fetch_files(STORES, FILES)
    return board


def _write(stores: list[Path], board: Path) -> tuple[Leaderboard, str]:
    """Write the page and the feed, to the URL too where the board is at one; where the page is to be found."""
    from bench.results.remote import mirror_of, named
    from reports.leaderboard.page import write_leaderboard

    written = write_leaderboard(stores, board)
    mirror = mirror_of(board)
    if mirror is not None:
        mirror.put_files(written.page.name, written.feed.name)
    return written, f"{named(board)}/{written.page.name}"


@command.command("add")
@click.argument("store", type=Place())
@_OUT
@click.option("--name", help="Its name on the leaderboard; that of its folder.")
@click.option("--check", is_flag=True, help="Only say what is missing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def add(store: Path, out: str, name: str | None, check: bool, as_json: bool) -> int:
    """Look STORE through and take it in, its records and values copied to DIR/stores; or list all that is missing.

    Exit codes: 0 taken in, 1 something is missing, 2 no store.
    """
    check_store("store", store)
    from bench.results.remote import mirror_of
    from methods.errors import UserError
    from reports.leaderboard import submission

    name = name or store.resolve().name
    try:
        submission.check_name(name)
    except ValueError as error:
        raise UserError(f"{one_line(error)}; give another with --name") from None
    found = submission.examine(store)
    if as_json:
        print_json(submission.as_json(found))
    else:
        for note in found.notes:
            click.echo(f"note: {one_line(note)}")
    if found.missing:
        if not as_json:
            click.echo(f"'{one_line(store)}' was not taken in:\n{submission.listed(found.missing)}")
        say_error(f"{counted(len(found.missing), 'thing')} missing in '{one_line(store)}'")
        return 1
    if check:
        return 0
    board = _board(out)
    folder = submission.accept(found, board, name)
    mirror = mirror_of(board)
    if mirror is not None:
        mirror.replace_files(f"{submission.STORES}/{name}")
    _, page = _write(submission.stores_of(board), board)
    if not as_json:
        click.echo(f"taken in as {one_line(folder if mirror is None else name)}\nleaderboard: {page}")
    return 0
