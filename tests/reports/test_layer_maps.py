"""Maps of single matrices: every panel shows the method and target that stand above it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import vl_convert
from sample_records import cell

from bench.results.records import MatrixFigures, Record
from reports.comparison import compare
from reports.figures.layers import error_map

ERRORS = {"sparsegpt 50%": 0.1, "wanda 50%": 0.2, "sparsegpt 60%": 0.3, "magnitude 70%": 0.4}
"""Methods lack most targets: a grid of both has more empty places than panels."""


def records() -> list[Record]:
    found = []
    for panel, error in ERRORS.items():
        method, target = panel.split()
        sizes = {"name": "fc1", "rows": 4, "columns": 4, "removed": 8}
        matrices = tuple(MatrixFigures(block=block, heldout_error=error, **sizes) for block in range(9))
        for entry in cell("nano-opt", method, target):
            pruned = {"matrices": matrices} if entry.phase == "prune" else {}
            found.append(entry.model_copy(update=pruned))
    return found


def placed(element: ET.Element, x: float = 0, y: float = 0) -> Iterator[tuple[float, float, ET.Element]]:
    """Every element of an SVG with its place on the page, by the translations it stands in."""
    for dx, dy in re.findall(r"translate\(([-\d.]+),([-\d.]+)\)", element.get("transform", "")):
        x, y = x + float(dx), y + float(dy)
    yield x, y, element
    for child in element:
        yield from placed(child, x, y)


def test_every_panel_shows_what_stands_above_it() -> None:
    (group,) = compare(records()).groups
    drawn = error_map(group)
    assert drawn is not None
    heads: dict[str, tuple[float, float]] = {}
    rectangles: list[tuple[float, float, float]] = []
    image = ET.fromstring(vl_convert.vegalite_to_svg(drawn[0]))  # noqa: S314 - our own drawing
    for x, y, element in placed(image):
        if element.text in ERRORS:
            heads[element.text] = (x, y)
        if told := re.search(r"Relative error: ([\d.]+)", element.get("aria-label", "")):
            left, top = re.match(r"M([-\d.]+),([-\d.]+)", element.get("d", "")).groups()  # type: ignore[union-attr]
            rectangles.append((x + float(left), y + float(top), float(told[1])))
    assert heads.keys() == ERRORS.keys() and len(rectangles) == 9 * len(ERRORS)
    for x, y, error in rectangles:
        above = [name for name, (_, top) in heads.items() if top <= y]
        lowest = max(heads[name][1] for name in above)
        nearest = min(
            (name for name in above if heads[name][1] == lowest), key=lambda name: abs(heads[name][0] - x)
        )
        assert ERRORS[nearest] == error
