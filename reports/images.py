"""The plots of the overview page as image files, drawn by vl-convert without a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from bench.results.files import fault, replace_file
from reports.comparison import compare
from reports.figures.memory import memory_charts
from reports.figures.style import Chart
from reports.load import load
from reports.pages import MOST_SECTIONS, speedups
from reports.sections import section

Form = Literal["png", "svg", "pdf"]
_WIDTH: Final = 720
_FRONT_WIDTH: Final = 480
_PIXELS: Final = 2.0
_INK: Final = "#1d2329"


def write_images(out: Path, forms: Sequence[str]) -> Iterator[Path]:
    """Write every plot of the store in `out` to OUT/report/figures in each of `forms`, giving paths as they are done.

    Raises `StoreError` for a store that cannot be read, `MachineError` where a file cannot be written.
    """
    import altair as alt
    import vl_convert

    comparison = compare(load(Path(out)).records)
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    folder = Path(out) / "report" / "figures"
    charts: list[Chart] = [*speedups(comparison), *memory_charts(comparison.records)]
    for index, group in enumerate(comparison.groups[:MOST_SECTIONS], 1):
        charts += section(index, group, (), comparison.groups).drawn
    for chart in charts:
        plain = _on_paper(chart.specification, _FRONT_WIDTH if "-front-" in chart.name else _WIDTH)
        for form in forms:
            if form == "png":
                data = vl_convert.vegalite_to_png(plain, vl_version=version, scale=_PIXELS)
            elif form == "pdf":
                data = vl_convert.vegalite_to_pdf(plain, vl_version=version)
            else:
                data = vl_convert.vegalite_to_svg(plain, vl_version=version).encode("utf-8")
            path = folder / f"{chart.name}.{form}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                replace_file(path, data)
            except OSError as error:
                raise fault("write", path, error) from error
            yield path


def _on_paper(specification: dict[str, Any], width: int) -> dict[str, Any]:
    """The plot in dark ink on white, as wide as `width` pixels where it would fill a page's container."""
    plain: dict[str, Any] = _inked(specification)
    config = {**plain.get("config", {}), "background": "white"}
    return {**plain, "config": config, **({"width": width} if plain.get("width") == "container" else {})}


def _inked(value: Any) -> Any:
    # A page's text colour means nothing outside a page.
    if isinstance(value, dict):
        return {key: _inked(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_inked(entry) for entry in value]
    return _INK if value == "currentColor" else value
