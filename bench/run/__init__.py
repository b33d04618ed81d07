"""Runs a plan: cells in order, each in phases, every finished phase a record."""
