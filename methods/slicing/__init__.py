"""SliceGPT. Importing this makes sliced checkpoints loadable by transformers' auto classes."""

from __future__ import annotations

from methods.slicing import modeling as modeling
