"""Comparison reports from the results store; nothing here loads a model or touches the network."""

from __future__ import annotations
