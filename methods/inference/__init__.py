"""Whole models in memory, for what cannot be streamed: generation and libraries that call a model themselves."""
