"""Figures of the loader benchmark, one module each."""
