"""What all plots share: colours, shapes, and the choice of scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

if TYPE_CHECKING:
    import altair as alt

NAME_LENGTH: Final = 48
COLOURS: Final = ("#3b82c4", "#c96f14", "#3a9d6e", "#b25fb0", "#a8890f", "#c2514e", "#2f93a6", "#7d7d7d")
SHAPES: Final = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "stroke",
)
INK: Final = "currentColor"
CONFIG: Final[dict[str, Any]] = {
    # The page's own text colour, so that one drawing serves light, dark and print.
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": INK,
        "gridOpacity": 0.15,
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12},
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12},
    "title": {"color": INK},
    "view": {"stroke": INK, "strokeOpacity": 0.15},
}


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification with its caption and the id of its place on the page."""

    name: str
    caption: str
    specification: dict[str, Any]


def positive_scale(values: Sequence[float]) -> alt.Scale:
    """A logarithmic scale for positive values that lie far apart, else a linear one without zero."""
    import altair as alt

    if max(values) > 5 * min(values):
        return alt.Scale(type="log", padding=14)
    return alt.Scale(zero=False, padding=14)


def method_colour(methods: Sequence[str]) -> alt.Color:
    """The colour of a method, with its legend above the plot."""
    import altair as alt

    legend = alt.Legend(orient="top", columns=4, symbolLimit=40)
    return alt.Color(
        "method:N", sort=list(methods), title="Method", legend=legend, scale=repeated(methods, COLOURS)
    )


def method_shape(methods: Sequence[str]) -> alt.Shape:
    """The shape of a method's marks."""
    import altair as alt

    return alt.Shape("method:N", sort=list(methods), title="Method", scale=repeated(methods, SHAPES))


def drawable(value: float | None) -> TypeGuard[float]:
    """Whether an axis can hold the value, logarithmic ones included."""
    return value is not None and math.isfinite(value) and 0 < value < 1e300


def log_note(scale: alt.Scale) -> str:
    """What an axis title says of its scale."""
    return " (log scale)" if scale.to_dict().get("type") == "log" else ""


def repeated(names: Sequence[str], palette: tuple[str, ...]) -> alt.Scale:
    """A scale over `names` that begins the palette anew where it ends."""
    import altair as alt

    return alt.Scale(domain=list(names), range=[palette[index % len(palette)] for index in range(len(names))])


def specification(chart: Any) -> dict[str, Any]:
    """The chart as plain data, in the page's own colours."""
    plain: dict[str, Any] = chart.to_dict(validate=False)
    return {**plain, "config": CONFIG}
