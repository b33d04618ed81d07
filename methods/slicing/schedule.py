"""How wide each segment of the residual stream stays, from a share to slice or from a size to reach."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from fractions import Fraction

from methods.errors import UnsupportedTarget
from methods.families import sizes
from methods.families.sliced import PREFIX
from methods.interface import ModelShape, Slices
from methods.target import Target

__all__ = ["Schedule", "sliced_shape"]


def sliced_shape(shape: ModelShape, slices: Slices) -> ModelShape:
    """The shape of a dense model after slicing: untied, under the name of its sliced family."""
    return dataclasses.replace(shape, family=f"{PREFIX}{shape.family}", tied=False, slices=slices)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Widths by depth. A share s keeps ⌊(1 - s)·D⌋ of D, rounded down to ``round_interval``; none is rounded at s = 0.

    ``slope``: the share grows by it, linearly, from the first attention to the last feed-forward, s being the
    middle; 0 is the constant schedule. ``slice_head``: the last block and the head are sliced too; else the head
    keeps the full width.
    """

    round_interval: int = 8
    slice_head: bool = False
    slope: float = 0.0

    def slices(self, shape: ModelShape, target: Target) -> Slices:
        """The widths that a target (``slice25%``, ``params-20%``, ``bytes-30%``) leaves a dense model.

        A size is reached by the widest schedule that is small enough. Raises UnsupportedTarget, with the
        figures, where no width does.
        """
        if target.kind == "slice":
            found = self._at(shape, target.amount)
            if _thinnest(found) < 1:
                raise UnsupportedTarget(
                    f"{target} leaves no width: of {shape.width}, what stays is rounded down to a multiple of "
                    f"{self.round_interval}; slice less, or lower slicegpt.round_interval"
                )
            return found
        if target.kind not in ("params", "bytes"):
            raise UnsupportedTarget(
                f"slicegpt narrows matrices and cannot reach {target}; use slice25%, params-20% or bytes-30%"
            )
        return self._within(shape, target)

    def _within(self, shape: ModelShape, target: Target) -> Slices:
        dense = sizes.parameters(shape)
        # all tensors keep the dtype they are stored in, so a share of the bytes is a share of the parameters
        most = int((1 - target.amount) * dense)
        widths = range(self.round_interval, shape.width + 1, self.round_interval)
        first = bisect_left(widths, 1, key=lambda width: _thinnest(self._of_width(shape, width)))
        if first == len(widths):
            raise UnsupportedTarget(
                f"{target}: no multiple of {self.round_interval} up to {shape.width} gives every segment a width; "
                "lower slicegpt.round_interval or slicegpt.slope"
            )

        def parameters(width: int) -> int:
            return sizes.parameters(sliced_shape(shape, self._of_width(shape, width)))

        fitting = bisect_right(widths, most, lo=first, key=parameters)
        if fitting == first:
            least = parameters(widths[first])
            raise UnsupportedTarget(
                f"{target} allows {most:,} of {dense:,} parameters; sliced to width {widths[first]} the model still "
                f"has {least:,}{self._head_note(shape, widths[first], most)}"
            )
        return self._of_width(shape, widths[fitting - 1])

    def _head_note(self, shape: ModelShape, width: int, most: int) -> str:
        if self.slice_head:
            return ""
        tied = ", untied from the token table" if shape.tied else ""
        note = f" ({shape.vocabulary * shape.width:,} in its full head{tied})"
        cut = dataclasses.replace(self, slice_head=True)._of_width(shape, width)
        reached = sizes.parameters(sliced_shape(shape, cut)) <= most
        return f"{note}; set slicegpt.slice_head=true" if reached else note

    def _of_width(self, shape: ModelShape, width: int) -> Slices:
        return self._at(shape, 1 - Fraction(width, shape.width))

    def _at(self, shape: ModelShape, share: Fraction) -> Slices:
        steps = 2 * shape.blocks - 1
        slope = Fraction(str(self.slope))
        widths = [
            self._width(shape.width, share + slope * (Fraction(step, steps) - Fraction(1, 2)))
            for step in range(steps + 1)
        ]
        head = widths[-1] if self.slice_head else shape.width
        return Slices(tuple(widths[0::2]), tuple(widths[1::2]), head)

    def _width(self, whole: int, share: Fraction) -> int:
        if share <= 0:
            return whole
        kept = max(0, int((1 - share) * whole))
        return kept // self.round_interval * self.round_interval


def _thinnest(slices: Slices) -> int:
    return min(*slices.attention, *slices.feedforward, slices.head)
