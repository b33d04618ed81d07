"""Quality against what it costs: bytes, parameters, decode speed, prune time, and who is on the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from reports.comparison import DENSE, QUALITY_PHASE, SIZE_PHASE, Group, Row
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
from reports.tables import figure_of
from reports.wording import clean, figure


@dataclass(frozen=True)
class Cost:
    """One horizontal axis: the metrics that may fill it (the first measured one does), and which way is better."""

    title: str
    phase: str
    metrics: tuple[str, ...]
    unit: str
    more_is_better: bool = False


COSTS: Final = (
    Cost("Bytes, zeros left out where that is smaller", SIZE_PHASE, ("bytes_bitmap", "bytes"), "byte"),
    Cost("Parameters that are not zero", SIZE_PHASE, ("parameters_nonzero",), "1"),
    Cost(
        "Decode, token/s, best form",
        "decode",
        ("decode_tokens_per_second", "decode_tokens_per_second_bitmap", "decode_tokens_per_second_nm"),
        "token/s",
        more_is_better=True,
    ),
    Cost("Prune time, s", SIZE_PHASE, ("prune_time",), "s"),
)


def front(points: Sequence[tuple[float, float]], *, more_is_better: bool = False) -> list[int]:
    """The places of the (cost, perplexity) points that no other beats or equals in both, by cost."""
    order = sorted(
        range(len(points)),
        key=lambda place: (points[place][0] * (-1 if more_is_better else 1), points[place][1]),
    )
    found: list[int] = []
    for place in order:
        if not found or points[place][1] < points[found[-1]][1]:
            found.append(place)
    return found


def pareto_charts(group: Group, beside: Sequence[Group]) -> list[tuple[str, dict[str, Any], str]]:
    """A name, a plot and a caption per cost known for two rows or more; speeds come from the groups `beside`."""
    speeds = _speeds(group, beside)
    charts = []
    for cost in COSTS:
        points = [
            {
                "method": clean(row.name, NAME_LENGTH),
                "target": clean(row.target, NAME_LENGTH),
                "perplexity": row.perplexity.mean,
                "shown": figure_of(row, QUALITY_PHASE, "perplexity"),
                "cost": value,
                "cost_shown": figure(value, cost.unit),
            }
            for row in group.rows
            if drawable(row.perplexity.mean) and drawable(value := _cost(row, cost, speeds))
        ]
        if len({point["cost"] for point in points}) > 1:
            charts.append((cost.metrics[0], *_chart(points, cost)))
    return charts


def _cost(row: Row, cost: Cost, speeds: dict[tuple[str, ...], Row]) -> float | None:
    source = speeds.get(_identity(row)) if cost.phase == "decode" else row
    if source is None:
        return None
    known = [
        source.figures[cost.phase, name].mean for name in cost.metrics if (cost.phase, name) in source.figures
    ]
    values = [value for value in known if drawable(value)]
    if not values:
        return None
    return max(values) if cost.more_is_better else min(values)


def _speeds(group: Group, beside: Sequence[Group]) -> dict[tuple[str, ...], Row]:
    """Rows of the same model that were timed in one environment; none where several were."""
    timed = [
        other
        for other in beside
        if (other.model, other.revision) == (group.model, group.revision)
        and other.key.recovered == group.key.recovered
        and other.key.environment
    ]
    if len({other.key.environment for other in timed}) != 1:
        return {}
    return {_identity(row): row for other in timed for row in other.rows}


def _identity(row: Row) -> tuple[str, ...]:
    return (row.method, row.target, row.calibration, row.dtype, row.parameters)


def _chart(points: list[dict[str, Any]], cost: Cost) -> tuple[dict[str, Any], str]:
    import altair as alt

    best = front(
        [(point["cost"], point["perplexity"]) for point in points], more_is_better=cost.more_is_better
    )
    marked = [
        {**point, "front": "on the front" if place in best else "beaten"}
        for place, point in enumerate(points)
    ]
    methods = list(dict.fromkeys(point["method"] for point in points))
    x_scale = positive_scale([point["cost"] for point in points])
    y_scale = positive_scale([point["perplexity"] for point in points])
    x = alt.X(
        "cost:Q",
        scale=x_scale,
        title=f"{cost.title}{log_note(x_scale)}",
        axis=alt.Axis(format="~s", labelOverlap=True),
    )
    y = alt.Y("perplexity:Q", scale=y_scale, title=f"Perplexity{log_note(y_scale)}")
    line = alt.Chart(alt.InlineData(values=[points[place] for place in best])).mark_line(
        interpolate="step-before" if cost.more_is_better else "step-after",
        color=INK,
        opacity=0.45,
        strokeWidth=1.5,
    )
    marks = alt.Chart(alt.InlineData(values=marked)).mark_point(size=90, filled=True)
    layers = alt.layer(
        line.encode(x=x, y=y),
        marks.encode(
            x=x,
            y=y,
            color=method_colour(methods),
            shape=method_shape(methods),
            opacity=alt.Opacity(
                "front:N", scale=alt.Scale(domain=["on the front", "beaten"], range=[1, 0.45]), legend=None
            ),
            tooltip=[
                alt.Tooltip("method:N", title="Method"),
                alt.Tooltip("target:N", title="Target"),
                alt.Tooltip("shown:N", title="Perplexity"),
                alt.Tooltip("cost_shown:N", title=cost.title),
                alt.Tooltip("front:N", title="Front"),
            ],
        ),
    )
    names = [f"{points[place]['method']} {points[place]['target']}" for place in best]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    caption = f"Perplexity against {cost.title[0].lower()}{cost.title[1:]}. On the front: {shown}."
    if any(point["method"] == DENSE for point in points):
        caption += " Dense is the unpruned model."
    return specification(layers.properties(width="container", height=240)), caption
