"""Methods ranked over any number of stores, wherever their figures compare and nowhere else."""

from __future__ import annotations
