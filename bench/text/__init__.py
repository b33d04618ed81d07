"""Calibration and evaluation text: protocols, sources and the embedded King James Bible."""

from __future__ import annotations
