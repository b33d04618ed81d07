"""Cells as Ray tasks: placed, retried and cancelled by Ray; their records come back to the one process that writes."""
