"""Measurements of the machine: what it is, what memory a phase took."""
