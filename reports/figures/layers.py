"""Maps of single weight matrices: what each lost, and what error that made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from bench.results.records import MatrixFigures
from reports.comparison import Group, Row
from reports.figures.style import NAME_LENGTH, specification
from reports.statistics import summarise
from reports.wording import clean

MOST_PANELS: Final = 12
_WIDTH: Final = 860
"""What all panels side by side may take, in pixels."""
_EVEN: Final = 0.005
"""Shares of removed weights closer than this are called even."""


def error_map(group: Group) -> tuple[dict[str, Any], str] | None:
    """Relative output error of every pruned matrix, a panel per method and target, and a caption."""
    rows = _pruned(group)
    shown = rows[:MOST_PANELS]
    for measure in ("heldout_error", "calibration_error"):
        points = [point for row in shown for point in _points(row, measure) if point["error"] is not None]
        if points:
            break
    else:
        return None
    text = {"heldout_error": "held-out text", "calibration_error": "the calibration text"}[measure]
    errors = [point["error"] for point in points]
    logarithmic = min(errors) > 0
    caption = (
        f"Relative output error of each pruned matrix on {text}, by block"
        f"{', on a logarithmic colour scale' if logarithmic else ''}; brighter is worse."
    )
    scale = {"type": "log" if logarithmic else "linear", "scheme": "viridis"}
    return _map(points, "error", "Relative error", ".2~g", scale), caption + _left_out(rows, shown)


def sparsity_map(group: Group) -> tuple[dict[str, Any], str] | None:
    """The share of weights that each matrix lost, for rows whose matrices differ; None where none do."""
    rows = _pruned(group)
    uneven = []
    for row in rows:
        points = [point for point in _points(row, "heldout_error") if point["removed"] is not None]
        shares = [point["removed"] for point in points]
        if shares and max(shares) - min(shares) > _EVEN:
            uneven.append((row, points))
    if not uneven:
        return None
    shown = uneven[:MOST_PANELS]
    caption = "Share of its weights that each matrix lost, by block; brighter is sparser."
    if len(uneven) < len(rows):
        caption += " Rows that remove the same share everywhere are left out."
    caption += _left_out(uneven, shown)
    points = [point for _, found in shown for point in found]
    return _map(points, "removed", "Weights removed", ".0%", {"type": "linear", "scheme": "cividis"}), caption


def _pruned(group: Group) -> list[Row]:
    return [row for row in group.rows if any(record.matrices for record in row.records)]


def _left_out(rows: Sequence[Any], shown: Sequence[Any]) -> str:
    if len(rows) == len(shown):
        return ""
    return f" The first {len(shown)} of {len(rows)} panels are drawn; the store holds all."


def _map(
    points: Sequence[dict[str, Any]], measure: str, title: str, shape: str, scale: dict[str, Any]
) -> dict[str, Any]:
    import altair as alt

    panels = list(dict.fromkeys(point["panel"] for point in points))
    columns = len({point["method"] for point in points})
    blocks = len({point["block"] for point in points})
    step = max(4, min(20, _WIDTH // (columns * max(blocks, 1))))
    values = [point[measure] for point in points]
    legend = alt.Legend(format=shape, values=sorted({min(values), max(values)}), orient="top")
    chart = (
        alt.Chart(alt.InlineData(values=list(points)))
        .mark_rect()
        .encode(
            x=alt.X("block:O", title="Block", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("matrix:N", sort=list(dict.fromkeys(point["matrix"] for point in points)), title=None),
            color=alt.Color(f"{measure}:Q", scale=alt.Scale(**scale), title=title, legend=legend),
            tooltip=[
                alt.Tooltip("matrix:N", title="Matrix"),
                alt.Tooltip("block:O", title="Block"),
                alt.Tooltip("error:Q", title="Relative error", format=".4g"),
                alt.Tooltip("removed:Q", title="Weights removed", format=".2%"),
            ],
        )
        .properties(width=alt.Step(step), height=alt.Step(16))
        # One facet, not rows and columns: a sorted grid with empty places puts its panels into the wrong ones.
        .facet(alt.Facet("panel:N", title=None, sort=panels), columns=columns)
    )
    return specification(chart)


def _points(row: Row, measure: str) -> list[dict[str, Any]]:
    places: dict[tuple[int, str], list[MatrixFigures]] = {}
    for record in row.records:
        for matrix in record.matrices:
            places.setdefault((matrix.block, matrix.name), []).append(matrix)
    points = []
    for (block, name), seeds in places.items():
        error = summarise([getattr(matrix, measure) for matrix in seeds]).mean
        size = sum(matrix.rows * matrix.columns for matrix in seeds)
        points.append(
            {
                "method": clean(row.name, NAME_LENGTH),
                "panel": f"{clean(row.name, NAME_LENGTH)} {clean(row.target, NAME_LENGTH)}",
                "block": block,
                "matrix": clean(name, NAME_LENGTH),
                "error": error if error is not None and math.isfinite(error) else None,
                "removed": sum(matrix.removed for matrix in seeds) / size if size > 0 else None,
            }
        )
    return points
