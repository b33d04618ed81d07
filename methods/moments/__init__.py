"""Statistics of a layer's inputs, and the factor of the inverse Hessian made from them."""

from __future__ import annotations

from methods.moments.factor import Factor, factorise, invert_lower_
from methods.moments.gram import Gram
from methods.moments.inputs import Moments, Statistic

__all__ = ["Factor", "Gram", "Moments", "Statistic", "factorise", "invert_lower_"]
