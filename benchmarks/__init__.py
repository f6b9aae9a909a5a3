"""Benchmarks: measure, then tabulate from the result files (`python -m benchmarks.NAME`)."""
