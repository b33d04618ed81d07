"""Speed-up of single products over batch, beside what memory and arithmetic would allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.results.records import Record
from reports.figures.style import COLOURS, INK, NAME_LENGTH, drawable, repeated, specification
from reports.kernels import kernel_rows, number_of, zeros_of
from reports.wording import clean

MOST_PANELS = 12


def speedup_charts(records: Iterable[Record]) -> list[tuple[str, dict[str, Any], str]]:
    """A name, a plot and a caption per weight type and thread count: shapes side by side, a line a format and share."""
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in kernel_rows(records):
        point = _point(row)
        if point is not None:
            key = (clean(row.get("dtype", ""), 20), clean(row.get("threads", ""), 20))
            parts.setdefault(key, []).append(point)
    return [
        (
            f"{dtype}-{threads}",
            *_chart(points, f"{dtype}, {threads} {'thread' if threads == '1' else 'threads'}"),
        )
        for (dtype, threads), points in parts.items()
    ]


def _point(row: Mapping[str, Any]) -> dict[str, Any] | None:
    speedup, share, batch = (
        number_of(row, name) for name in ("speedup_vs_dense", "roofline_fraction", "batch")
    )
    if not drawable(speedup) or not drawable(batch) or row.get("format") == "dense":
        return None
    return {
        "shape": clean(row.get("shape", ""), NAME_LENGTH),
        "line": f"{clean(row.get('format', ''), 20)}, {zeros_of(row)}",
        "batch": int(batch),
        "speedup": speedup,
        # The roofline time is its share of the measured one: the speed-up that reaching it would give.
        "allowed": speedup / share if drawable(share) else None,
        "verdict": clean(row.get("verdict", ""), 20),
    }


def _chart(points: list[dict[str, Any]], title: str) -> tuple[dict[str, Any], str]:
    import altair as alt

    shapes = list(dict.fromkeys(point["shape"] for point in points))
    shown = [point for point in points if point["shape"] in shapes[:MOST_PANELS]]
    lines = list(dict.fromkeys(point["line"] for point in shown))
    batches = sorted({point["batch"] for point in shown})
    base = alt.Chart().encode(
        x=alt.X("batch:O", sort=batches, title="Batch", axis=alt.Axis(labelAngle=0)),
        color=alt.Color(
            "line:N",
            sort=lines,
            title="Format, zeros",
            legend=alt.Legend(orient="top", columns=4),
            scale=repeated(lines, COLOURS),
        ),
    )
    y = alt.Y("speedup:Q", title="Times the best dense product")
    tooltip = [
        alt.Tooltip("line:N", title="Format, zeros"),
        alt.Tooltip("batch:O", title="Batch"),
        alt.Tooltip("speedup:Q", title="Speed-up", format=".2f"),
        alt.Tooltip("allowed:Q", title="At the roofline", format=".2f"),
        alt.Tooltip("verdict:N", title="Verdict"),
    ]
    even = alt.Chart().mark_rule(color=INK, opacity=0.7).encode(y=alt.datum(1))
    measured = base.mark_line(point=True).encode(y=y, tooltip=tooltip)
    bound = base.mark_line(strokeDash=[4, 4], opacity=0.7).encode(y=alt.Y("allowed:Q"))
    chart = (
        alt.layer(even, bound, measured, data=alt.InlineData(values=shown))
        .properties(width=230, height=200)
        .facet(alt.Facet("shape:N", sort=shapes, title=None), columns=3)
    )
    caption = (
        f"{title}: speed-up of packed products over the best dense one; the level line is dense. Dashed: what the bandwidth "
        "and rate measured in the same run would allow."
    )
    if len(shapes) > MOST_PANELS:
        caption += f" The first {MOST_PANELS} of {len(shapes)} shapes are drawn."
    return specification(chart), caption
