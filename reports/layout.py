"""The frame of every page: one HTML text that loads nothing, its scripts and styles allowed by their hashes alone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.results.records import now
from reports.figures.style import Chart
from reports.tables import Shown, Table
from reports.wording import clean

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES: Final = Path(__file__).parent / "templates"
ASSETS: Final = Path(__file__).parent / "assets"
STATIC_ROWS: Final = 500
"""Up to so many rows, a table that scripts draw stands in the page for readers without scripts, too."""


@dataclass(frozen=True)
class Page:
    """A page of a site as its siblings link to it."""

    file: str
    title: str


@dataclass(frozen=True)
class Explorer:
    """A table of any length that scripts page, sort and filter; `filters` are the columns to choose values of."""

    name: str
    table: Table
    filters: tuple[str, ...]

    @property
    def data(self) -> Markup:
        """Columns and rows as JSON, every text escaped for HTML and kept once."""
        from markupsafe import Markup, escape

        places: dict[Any, int] = {}

        def place(cell: str) -> int:
            order = cell.order if isinstance(cell, Shown) else None
            return places.setdefault(
                (str(cell), order) if isinstance(cell, Shown) else str(cell), len(places)
            )

        rows = [[place(cell) for cell in row] for row in self.table.rows]
        strings = [
            [str(escape(entry[0])), entry[1]] if isinstance(entry, tuple) else str(escape(entry))
            for entry in places
        ]
        data = {
            "columns": [
                {"title": str(escape(column)), "figure": place in self.table.figures}
                for place, column in enumerate(self.table.columns)
            ],
            "filters": [
                self.table.columns.index(name) for name in self.filters if name in self.table.columns
            ],
            "strings": strings,
            "rows": rows,
        }
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # As in jinja2's tojson: nothing in it can end the element or begin another.
        return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704

    @property
    def static(self) -> bool:
        """Whether the rows stand in the page for readers without scripts."""
        return len(self.table.rows) <= STATIC_ROWS


def render(
    template: str,
    *,
    title: str,
    charts: Iterable[Chart] = (),
    tables: bool = False,
    page: str = "",
    pages: Sequence[Page] = (),
    **context: Any,
) -> str:
    """A page from a template that extends `base.html.j2`, as one HTML text.

    Vega comes along where there are `charts`, the table library where `tables`. `page` is the file's own name among
    `pages`, the site's. Everything in `context` is escaped by the template.
    """
    drawn = list(charts)
    scripts = []
    if drawn:
        scripts += [_vega(), _script("charts.js")]
    if tables:
        scripts += [
            (ASSETS / "datatables" / "dataTables.min.js").read_text(encoding="utf-8"),
            _script("tables.js"),
        ]
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            policy=_policy(scripts, [style]),
            style=style,
            scripts=scripts,
            page=page,
            pages=pages,
            made=now()[:16].replace("T", " "),
            clean=clean,
            **context,
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _script(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the installed packages."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    # Inside <script> these three would end or bend the element; in strings the escape means the same.
    return re.sub(r"<(?=/script|script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    return (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hashes(texts: Sequence[str]) -> str:
    found = [
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in texts
    ]
    return " ".join(f"'sha256-{entry}'" for entry in found) or "'none'"
