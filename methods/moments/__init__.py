"""Statistics of a layer's inputs, and the factor of the inverse Hessian made from them."""

from __future__ import annotations

from methods.moments.eigen import Eigen, decompose
from methods.moments.factor import Factor, factorise, invert_lower_, reverse_
from methods.moments.gram import Gram
from methods.moments.inputs import Moments, Statistic

__all__ = [
    "Eigen",
    "Factor",
    "Gram",
    "Moments",
    "Statistic",
    "decompose",
    "factorise",
    "invert_lower_",
    "reverse_",
]
