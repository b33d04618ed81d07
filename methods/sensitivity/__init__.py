"""How much the model's loss feels each matrix: curvature per weight, with its standard error."""

from __future__ import annotations
