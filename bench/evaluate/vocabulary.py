"""What an output matrix says of each row of states: the loss of a target, the divergence from a dense model, the flip.

A vocabulary is a hundred times wider than a model, so its logits are never held as a whole: they are made tile by tile
of the vocabulary for all rows at once, which products like better than few rows of the whole, and reduced in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.plan.machine import tile_columns
from methods.stream.stopwatch import Stopwatch

__all__ = ["Head", "RowFigures", "row_figures"]


@dataclass(frozen=True, slots=True)
class Head:
    """Output matrix [vocabulary, width] and its bias [vocabulary], if any."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, states: Tensor, part: slice) -> Tensor:
        """Float32 [rows, part] for ``states`` [rows, width]; the product is in the matrix's dtype."""
        bias = None if self.bias is None else self.bias[part]
        return functional.linear(states, self.weight[part], bias).float()

    def tiles(self, rows: int) -> Iterator[slice]:
        """Parts of the vocabulary whose logits are made together."""
        step = tile_columns(rows, on_cuda=self.weight.is_cuda)
        for start in range(0, self.weight.shape[0], step):
            yield slice(start, min(start + step, self.weight.shape[0]))


@dataclass(frozen=True, slots=True)
class RowFigures:
    """Float64 [rows]: loss in nat; KL(dense || ours) in nat and whether the argmax differs, None without a dense model."""

    loss: Tensor
    divergence: Tensor | None = None
    flips: Tensor | None = None


def row_figures(
    states: Tensor, targets: Tensor, head: Head, clock: Stopwatch, dense: tuple[Tensor, Head] | None = None
) -> RowFigures:
    """Figures of ``states`` [rows, width] for ``targets`` int64 [rows] of the vocabulary.

    ``dense`` is what the dense model's head reads at the same rows, and that head, of the same vocabulary. The sums of a
    tile are float32, those over tiles float64. ``clock`` counts ``loss`` and ``divergence`` apart. What is not finite gives
    NaN or infinity. Raises ValueError where a target is not in the vocabulary.
    """
    rows, vocabulary = states.shape[0], head.weight.shape[0]
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < vocabulary:
        raise ValueError(
            f"targets from {int(targets.min())} to {int(targets.max())}: the vocabulary has 0 to {vocabulary - 1}"
        )
    tiles = list(head.tiles(rows))
    ours, theirs = (_Running(len(tiles), rows, states.device) for _ in range(2))
    aim = torch.zeros(rows, dtype=torch.float32, device=states.device)
    gaps = torch.empty(len(tiles), rows, dtype=torch.float32, device=states.device)
    for number, part in enumerate(tiles):
        with clock("loss"):
            found = head.logits(states, part)
            ours.add(number, found)
            place = targets - part.start
            inside = (place >= 0) & (place < found.shape[1])
            here = found.gather(1, place.clamp(0, found.shape[1] - 1)[:, None])[:, 0]
            aim = torch.where(inside, here, aim)
        if dense is not None:
            with clock("divergence"):
                expected = dense[1].logits(dense[0], part)
                ours.look(found, part.start)
                theirs.look(expected, part.start)
                shares = (expected - theirs.add(number, expected)[:, None]).exp_()
                gaps[number] = (shares * expected.sub_(found)).sum(1)
    with clock("loss"):
        whole = ours.whole()
        loss = whole - aim
    if dense is None:
        return RowFigures(loss)
    with clock("divergence"):
        expected_whole = theirs.whole()
        weights = (theirs.stacked() - expected_whole).exp()
        divergence = (weights * gaps.double()).sum(0) - expected_whole + whole
        return RowFigures(loss, divergence, (ours.place != theirs.place).double())


class _Running:
    """Of the tiles seen so far: the log of the summed exponentials of each, and the largest logit's place.

    What is kept of a tile lies in one tensor for all: kept apart, it would lie between the logits of two tiles, and
    the allocator could not use that place again.
    """

    def __init__(self, tiles: int, rows: int, device: torch.device) -> None:
        self._logs = torch.empty(tiles, rows, dtype=torch.float32, device=device)
        self._largest = torch.full((rows,), -torch.inf, device=device)
        self.place = torch.zeros(rows, dtype=torch.int64, device=device)

    def add(self, tile: int, logits: Tensor) -> Tensor:
        """log Σ exp of a tile [rows, columns]: float32 [rows]."""
        self._logs[tile] = torch.logsumexp(logits, dim=1)
        return self._logs[tile]

    def look(self, logits: Tensor, start: int) -> None:
        """The tile's columns begin at ``start`` of the vocabulary; the first of equal logits stays, NaN is the largest."""
        values, places = logits.max(dim=1)
        better = (values > self._largest) | (values.isnan() & ~self._largest.isnan())
        self._largest = torch.where(better, values, self._largest)
        self.place = torch.where(better, places + start, self.place)

    def stacked(self) -> Tensor:
        """Float64 [tiles, rows]."""
        return self._logs.double()

    def whole(self) -> Tensor:
        """log Σ exp over the vocabulary, float64 [rows]."""
        return torch.logsumexp(self.stacked(), dim=0)
