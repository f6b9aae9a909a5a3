"""Shared code of the benchmarks: alternation, JSON lines, datasets, tables."""
