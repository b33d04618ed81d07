"""Which cell a node gets next, so that a model is loaded by as few nodes as possible and none stands idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

__all__ = ["Affinity"]


class Affinity:
    """Cells in the plan's order, a model at a time, cut into one stretch a node of equal work for its capacity.

    So ``models + nodes - 1`` pairs of node and model suffice. A node that has finished its stretch takes from the
    end of another's, of a model that it has loaded where there is one: nodes that come, go or are slow change
    who does what, never whether it is done. Ray decides where and when a cell really runs; this is the order in
    which they are offered to it.
    """

    def __init__(self, models: Sequence[str], work: Sequence[float], capacity: Mapping[str, float]) -> None:
        self._models = models
        self._stretches: dict[str, deque[int]] = {node: deque() for node in capacity}
        self._loaded: dict[str, set[str]] = {node: set() for node in capacity}
        total, whole = sum(work), sum(capacity.values())
        ends, end = [], 0.0
        for node, share in capacity.items():
            end += share / whole
            ends.append((node, end))
        done = 0.0
        for index, size in enumerate(work):
            middle = (done + size / 2) / total if total else 0.0
            node = next((node for node, end in ends if middle < end), ends[-1][0])
            self._stretches[node].append(index)
            done += size

    def __len__(self) -> int:
        return sum(map(len, self._stretches.values()))

    def take(self, node: str) -> int | None:
        """The next cell for a node, or None where none is left."""
        own = self._stretches.setdefault(node, deque())
        loaded = self._loaded.setdefault(node, set())
        if own:
            index = own.popleft()
        else:
            others = [stretch for stretch in self._stretches.values() if stretch]
            if not others:
                return None
            index = max(others, key=lambda stretch: (self._models[stretch[-1]] in loaded, len(stretch))).pop()
        loaded.add(self._models[index])
        return index
