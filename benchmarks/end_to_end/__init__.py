"""Benchmark: end_to_end."""
