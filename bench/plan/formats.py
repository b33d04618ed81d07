"""Which packed formats a target's weights are decoded in, beside dense ones."""

from __future__ import annotations

from methods.target import DENSE, Target

__all__ = ["sparse_formats"]


def sparse_formats(target: str) -> tuple[str, ...]:
    """``bitmap`` for zeros anywhere, ``nm`` too for N:M; none where nothing is removed or the model only gets narrower."""
    aim = Target.parse(target)
    if aim == DENSE or aim.kind == "slice" or (aim.kind == "unstructured" and aim.amount == 0):
        return ()
    return ("bitmap", "nm") if aim.kind == "nm" else ("bitmap",)
