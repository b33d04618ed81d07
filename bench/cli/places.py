"""Arguments that name a store: a folder, or a URL whose records are brought here first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["Place"]


class Place(click.Path):
    """A folder as given, or the spool of a URL (``s3://bucket/path``) with all that is stored there.

    Where the store cannot be reached, what the spool holds is shown, with a warning.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path to read. Raises UserError, MachineError."""
        if "://" not in str(value) or (ctx is not None and ctx.resilient_parsing):
            return super().convert(value, param, ctx)
        from bench.cli.failures import say_warning
        from bench.results.remote import mirror_of, place
        from methods.errors import MachineError

        folder = place(str(value))
        mirror = mirror_of(folder)
        assert mirror is not None  # noqa: S101 - a URL has one
        try:
            mirror.fetch()
        except MachineError as error:
            if not (folder / "store.json").is_file():
                raise
            say_warning(f"{error}; used is what was fetched before")
        return folder
