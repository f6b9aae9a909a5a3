"""Figures of the scoring benchmark, one module each."""
