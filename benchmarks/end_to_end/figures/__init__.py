"""Figures of the end-to-end benchmark, one module each."""
