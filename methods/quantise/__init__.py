"""Quantisation: grids made from weights, and the round trip between weights and levels."""
