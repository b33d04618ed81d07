"""The results store: versioned records, checksummed segments, raw values; free of torch and pandas."""

from __future__ import annotations
