"""Figures of the writing benchmark, one module each."""
