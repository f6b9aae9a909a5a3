"""Benchmark: loader."""
