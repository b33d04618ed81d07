"""The Weights & Biases mirror: finished records of a store as runs, written offline first, uploaded afterwards."""

from __future__ import annotations
