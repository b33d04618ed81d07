"""Plots as Vega-Lite specifications: plain data, drawn by the page that embeds them or by vl-convert."""
