"""Benchmark: writing."""
