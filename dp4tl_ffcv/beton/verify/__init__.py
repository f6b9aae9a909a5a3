"""Verify a beton: list every problem of a file."""
