"""Figures of the planted benchmark, one module each."""
