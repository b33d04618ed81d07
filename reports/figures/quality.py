"""Perplexity by target and method, and what single calibration seeds gave."""

from __future__ import annotations

from typing import Any, Final

from reports.comparison import DENSE, QUALITY_PHASE, Group
from reports.figures.style import (
    INK,
    NAME_LENGTH,
    drawable,
    log_note,
    method_colour,
    method_shape,
    positive_scale,
    specification,
)
from reports.tables import change_of, figure_of, seeds_of
from reports.wording import clean

MOST_SEED_ROWS: Final = 60


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
        if row not in group.dense and drawable((summary := row.perplexity).mean)
    ]
    if not points:
        return None
    import altair as alt

    dense: list[dict[str, Any]] = [
        {"perplexity": row.perplexity.mean, "text": f"dense {figure_of(row, QUALITY_PHASE, 'perplexity')}"}
        for row in group.dense
        if drawable(row.perplexity.mean)
    ]
    every = [entry["perplexity"] for entry in (*points, *dense)]
    scale = positive_scale(every)
    y = alt.Y("perplexity:Q", scale=scale, title=f"Perplexity, lower is better{log_note(scale)}")
    methods = list(dict.fromkeys(point["method"] for point in points))
    targets = list(dict.fromkeys(point["target"] for point in points))
    x = alt.X("target:N", sort=targets, title="Target", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, xOffset=alt.XOffset("method:N", sort=methods))
    colour, shape = method_colour(methods), method_shape(methods)
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
        layers.append(rule.mark_rule(strokeDash=[5, 4], color=INK, opacity=0.7))
        # Pruned models lie above the dense line, so below it at the right edge the label meets no point.
        label = rule.mark_text(align="right", dx=-4, dy=7, color=INK, fontSize=12)
        layers.append(label.encode(text="text:N", x=alt.value("width")))
    return specification(alt.layer(*layers).properties(width="container", height=280))


def seeds_chart(group: Group) -> tuple[dict[str, Any], str] | None:
    """Every calibration seed's perplexity against its row's mean, with the mean's interval; None for single seeds."""
    rows = [
        row
        for row in group.rows
        if len(row.seeds) > 1 and row.method != DENSE and drawable(row.perplexity.mean)
    ]
    points: list[dict[str, Any]] = []
    for row in rows[:MOST_SEED_ROWS]:
        summary = row.perplexity
        values = [
            (record.seed, record.metric("perplexity"))
            for record in row.records
            if record.phase == QUALITY_PHASE
        ]
        if not drawable(summary.mean) or not all(drawable(value) for _, value in values):
            continue
        shared = {
            "row": f"{clean(row.name, NAME_LENGTH)} {clean(row.target, NAME_LENGTH)}",
            "low": (summary.low or 0) / summary.mean - 1,
            "high": (summary.high or 0) / summary.mean - 1,
        }
        points += [
            {**shared, "seed": str(seed), "perplexity": value, "off": value / summary.mean - 1}
            for seed, value in values
            if drawable(value)
        ]
    if not points:
        return None
    import altair as alt

    names = list(dict.fromkeys(point["row"] for point in points))
    base = alt.Chart(alt.InlineData(values=points)).encode(y=alt.Y("row:N", sort=names, title=None))
    interval = base.mark_rule(strokeWidth=6, opacity=0.3, color=INK).encode(x=alt.X("low:Q"), x2="high:Q")
    seeds = base.mark_point(size=70, filled=True, opacity=0.9).encode(
        x=alt.X("off:Q", title="Perplexity against the mean over seeds", axis=alt.Axis(format="+.2%")),
        color=alt.Color("seed:N", title="Seed", legend=alt.Legend(orient="top")),
        shape=alt.Shape("seed:N", title="Seed"),
        tooltip=[
            alt.Tooltip("row:N", title="Row"),
            alt.Tooltip("seed:N", title="Seed"),
            alt.Tooltip("perplexity:Q", title="Perplexity", format=".4f"),
        ],
    )
    caption = (
        "Perplexity with every calibration seed, off the geometric mean of its row; bars are 95 % Student intervals of that "
        "mean."
    )
    if len(rows) > MOST_SEED_ROWS:
        caption += f" The first {MOST_SEED_ROWS} of {len(rows)} rows are drawn."
    chart = alt.layer(interval, seeds).properties(width="container", height=22 * len(names))
    return specification(chart), caption
