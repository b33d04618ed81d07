"""Memory against model size: what pruning took, what it is bound by, and what the model weighs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from bench.results.records import Record
from reports.figures.style import (
    COLOURS,
    NAME_LENGTH,
    Chart,
    drawable,
    positive_scale,
    repeated,
    specification,
)
from reports.memory import held
from reports.wording import clean

__all__ = ["memory_charts"]

_LINES: Final = ("measured peak", "bound", "weights on disk")


def memory_charts(records: Iterable[Record]) -> list[Chart]:
    """One plot of all prunes under a budget, where they are of two sizes of model at least."""
    points: list[dict[str, Any]] = []
    for entry in held(records):
        if not drawable(entry.parameters):
            continue
        for line, value in zip(_LINES, (entry.peak, entry.bound, entry.stored), strict=True):
            if drawable(value):
                points.append(
                    {
                        "model": clean(entry.record.model, NAME_LENGTH),
                        "method": clean(entry.record.method, NAME_LENGTH),
                        "parameters": entry.parameters,
                        "line": line,
                        "gigabytes": value / 1e9,
                    }
                )
    if len({point["parameters"] for point in points}) < 2:
        return []
    return [Chart("memory-curve", _CAPTION, _chart(points))]


_CAPTION: Final = (
    "Memory of a prune against the size of the model. The bound is what the process held before, and 1.3 times a block, "
    "three of the largest float32 Hessian, the hidden states and the token table; beside them, what the weights take on disk."
)


def _chart(points: list[dict[str, Any]]) -> dict[str, Any]:
    import altair as alt

    x = alt.X(
        "parameters:Q",
        title="Parameters",
        scale=positive_scale([point["parameters"] for point in points]),
        axis=alt.Axis(format="~s"),
    )
    y = alt.Y("gigabytes:Q", title="GB", scale=alt.Scale(zero=True))
    colour = alt.Color(
        "line:N",
        sort=list(_LINES),
        title=None,
        legend=alt.Legend(orient="top"),
        scale=repeated(_LINES, COLOURS),
    )
    tooltip = [
        alt.Tooltip("model:N", title="Model"),
        alt.Tooltip("method:N", title="Method"),
        alt.Tooltip("line:N", title="What"),
        alt.Tooltip("gigabytes:Q", title="GB", format=".2f"),
    ]
    dashes = alt.StrokeDash(
        "line:N",
        sort=list(_LINES),
        legend=None,
        scale=alt.Scale(domain=list(_LINES), range=[[1, 0], [4, 4], [1, 3]]),
    )
    chart = (
        alt.Chart(alt.InlineData(values=points))
        .mark_line(point=True)
        .encode(x=x, y=y, color=colour, strokeDash=dashes, tooltip=tooltip)
        .properties(width=420, height=260)
    )
    return specification(chart)
