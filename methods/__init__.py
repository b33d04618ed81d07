"""Pruning methods: pure mathematics behind one pruner interface, streaming one decoder block at a time."""
