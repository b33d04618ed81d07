"""Plots as Vega-Lite specifications: plain data, drawn by the page that embeds them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from bench.results.records import MatrixFigures
from reports.comparison import QUALITY_PHASE, Group, Row
from reports.statistics import summarise
from reports.tables import change_of, figure_of, seeds_of
from reports.wording import clean

if TYPE_CHECKING:
    import altair as alt

NAME_LENGTH: Final = 48
MOST_PANELS: Final = 12
_COLOURS: Final = ("#3b82c4", "#c96f14", "#3a9d6e", "#b25fb0", "#a8890f", "#c2514e", "#2f93a6", "#7d7d7d")
_SHAPES: Final = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "stroke",
)
_INK: Final = "currentColor"
_CONFIG: Final[dict[str, Any]] = {
    # The page's own text colour, so that one drawing serves light, dark and print.
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": _INK,
        "titleColor": _INK,
        "domainColor": _INK,
        "tickColor": _INK,
        "gridColor": _INK,
        "gridOpacity": 0.15,
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "legend": {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12},
    "header": {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12},
    "title": {"color": _INK},
    "view": {"stroke": _INK, "strokeOpacity": 0.15},
}


def quality_chart(group: Group) -> dict[str, Any] | None:
    """Perplexity by target, one mark a method, intervals where seeds give them, the dense model as a line."""
    points: list[dict[str, Any]] = [
        {
            "method": clean(row.name, NAME_LENGTH),
            "target": clean(row.target, NAME_LENGTH),
            "perplexity": summary.mean,
            "low": summary.low,
            "high": summary.high,
            "shown": figure_of(row, QUALITY_PHASE, "perplexity"),
            "change": change_of(row),
            "seeds": seeds_of(row),
        }
        for row in group.rows
        if row not in group.dense and _drawable((summary := row.perplexity).mean)
    ]
    if not points:
        return None
    import altair as alt

    dense: list[dict[str, Any]] = [
        {"perplexity": row.perplexity.mean, "text": f"dense {figure_of(row, QUALITY_PHASE, 'perplexity')}"}
        for row in group.dense
        if _drawable(row.perplexity.mean)
    ]
    every = [entry["perplexity"] for entry in (*points, *dense)]
    scale = (
        alt.Scale(type="log", padding=14)
        if max(every) > 5 * min(every)
        else alt.Scale(zero=False, padding=14)
    )
    y = alt.Y("perplexity:Q", scale=scale, title=f"Perplexity, lower is better{_log(scale)}")
    methods = list(dict.fromkeys(point["method"] for point in points))
    targets = list(dict.fromkeys(point["target"] for point in points))
    x = alt.X("target:N", sort=targets, title="Target", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, xOffset=alt.XOffset("method:N", sort=methods))
    colour = alt.Color(
        "method:N",
        sort=methods,
        title="Method",
        legend=alt.Legend(orient="top"),
        scale=_repeated(methods, _COLOURS),
    )
    shape = alt.Shape("method:N", sort=methods, title="Method", scale=_repeated(methods, _SHAPES))
    tooltip = [
        alt.Tooltip(f"{name}:N", title=title)
        for name, title in (
            ("method", "Method"),
            ("target", "Target"),
            ("shown", "Perplexity"),
            ("change", "Change from dense"),
            ("seeds", "Seeds"),
        )
    ]
    layers: list[alt.Chart] = []
    if any(point["low"] != point["high"] for point in points):
        layers.append(base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q", color=colour))
    marks = base.mark_point(size=110, filled=True, opacity=1)
    layers.append(marks.encode(y=y, color=colour, shape=shape, tooltip=tooltip))
    if dense:
        rule = alt.Chart(alt.InlineData(values=dense)).encode(y=alt.Y("perplexity:Q"))
        layers.append(rule.mark_rule(strokeDash=[5, 4], color=_INK, opacity=0.7))
        # Pruned models lie above the dense line, so below it at the right edge the label meets no point.
        label = rule.mark_text(align="right", dx=-4, dy=7, color=_INK, fontSize=12)
        layers.append(label.encode(text="text:N", x=alt.value("width")))
    return _specification(alt.layer(*layers).properties(width="container", height=280))


def error_map(group: Group) -> tuple[dict[str, Any], str] | None:
    """Relative output error of every pruned matrix, a panel per method and target, and a caption."""
    rows = [row for row in group.rows if any(record.matrices for record in row.records)]
    targets = list(dict.fromkeys(row.target for row in rows))
    shown = rows[:MOST_PANELS]
    for measure in ("heldout_error", "calibration_error"):
        points = [point for row in shown for point in _matrix_points(row, measure)]
        if points:
            break
    else:
        return None
    import altair as alt

    text = {"heldout_error": "held-out text", "calibration_error": "the calibration text"}[measure]
    logarithmic = all(point["error"] > 0 for point in points)
    scale = alt.Scale(type="log" if logarithmic else "linear", scheme="viridis")
    chart = (
        alt.Chart(alt.InlineData(values=points))
        .mark_rect()
        .encode(
            x=alt.X("block:O", title="Block", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("matrix:N", sort=list(dict.fromkeys(point["matrix"] for point in points)), title=None),
            color=alt.Color(
                "error:Q",
                scale=scale,
                title="Relative error",
                legend=alt.Legend(format=".2~g", values=_ends(points)),
            ),
            tooltip=[
                alt.Tooltip("matrix:N", title="Matrix"),
                alt.Tooltip("block:O", title="Block"),
                alt.Tooltip("error:Q", title="Relative error", format=".4g"),
                alt.Tooltip("removed:Q", title="Weights removed", format=".2%"),
            ],
        )
        .properties(width=alt.Step(20), height=alt.Step(16))
        .facet(
            column=alt.Column(
                "method:N", title=None, sort=list(dict.fromkeys(point["method"] for point in points))
            ),
            row=alt.Row(
                "target:N",
                title=None,
                header=alt.Header(labelAngle=0),
                sort=[clean(target, NAME_LENGTH) for target in targets],
            ),
        )
    )
    caption = (
        f"Relative output error of each pruned matrix on {text}, by block"
        f"{', on a logarithmic colour scale' if logarithmic else ''}; brighter is worse."
    )
    if len(rows) > len(shown):
        caption += f" The first {len(shown)} of {len(rows)} panels are drawn; the store holds all."
    return _specification(chart), caption


def _matrix_points(row: Row, measure: str) -> list[dict[str, Any]]:
    places: dict[tuple[int, str], list[MatrixFigures]] = {}
    for record in row.records:
        for matrix in record.matrices:
            places.setdefault((matrix.block, matrix.name), []).append(matrix)
    points = []
    for (block, name), seeds in places.items():
        error = summarise([getattr(matrix, measure) for matrix in seeds]).mean
        size = sum(matrix.rows * matrix.columns for matrix in seeds)
        if error is not None and math.isfinite(error):
            points.append(
                {
                    "method": clean(row.name, NAME_LENGTH),
                    "target": clean(row.target, NAME_LENGTH),
                    "block": block,
                    "matrix": clean(name, NAME_LENGTH),
                    "error": error,
                    "removed": sum(matrix.removed for matrix in seeds) / size if size > 0 else None,
                }
            )
    return points


def _ends(points: list[dict[str, Any]]) -> list[float]:
    errors = [point["error"] for point in points]
    return [min(errors), max(errors)]


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and 0 < value < 1e300


def _log(scale: alt.Scale) -> str:
    return " (log scale)" if scale.to_dict().get("type") == "log" else ""


def _repeated(names: list[str], palette: tuple[str, ...]) -> alt.Scale:
    import altair as alt

    return alt.Scale(domain=names, range=[palette[index % len(palette)] for index in range(len(names))])


def _specification(chart: Any) -> dict[str, Any]:
    specification: dict[str, Any] = chart.to_dict(validate=False)
    return {**specification, "config": _CONFIG}
