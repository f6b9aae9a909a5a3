"""Benchmark: planted."""
