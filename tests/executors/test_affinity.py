"""Which cells nodes are offered: few loads of a model, no idle node, every cell once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.executors.ray.affinity import Affinity


def test_a_node_keeps_to_its_models() -> None:
    models = ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    affinity = Affinity(models, [1.0] * 18, {"x": 1.0, "y": 1.0, "z": 1.0})
    seen: dict[str, list[str]] = {"x": [], "y": [], "z": []}
    while affinity:
        for node, names in seen.items():
            names.append(models[affinity.take(node) or 0])
    assert seen == {"x": ["a"] * 6, "y": ["b"] * 6, "z": ["c"] * 6}


def test_a_node_that_is_done_helps_with_what_it_has_loaded() -> None:
    affinity = Affinity(["a"] * 4 + ["b"] * 4, [1.0] * 8, {"x": 5.0, "y": 3.0})
    assert [affinity.take("x") for _ in range(5)] == [0, 1, 2, 3, 4]
    assert affinity.take("x") == 7  # of b, which x has loaded by now, from the end of y's stretch
    assert [affinity.take("late"), affinity.take("y"), affinity.take("y")] == [6, 5, None]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1e18)), max_size=40),
    st.lists(st.floats(1, 256), min_size=1, max_size=6),
    st.lists(st.integers(0, 7), max_size=80),
)
def test_every_cell_is_taken_once(
    cells: list[tuple[str, float]], capacity: list[float], turns: list[int]
) -> None:
    cells.sort(key=lambda cell: cell[0])
    nodes = {str(number): size for number, size in enumerate(capacity)}
    affinity = Affinity([model for model, _ in cells], [work for _, work in cells], nodes)
    taken = [affinity.take(str(turn)) for turn in turns]
    while affinity:
        taken.append(affinity.take("0"))
    assert sorted(index for index in taken if index is not None) == list(range(len(cells)))
    assert affinity.take("0") is None
