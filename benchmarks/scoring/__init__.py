"""Benchmark: scoring."""
