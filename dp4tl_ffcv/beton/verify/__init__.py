"""Verify a beton: list every problem of a file."""

from .problems import Problem
from .verification import Verification, verify

__all__ = ["Problem", "Verification", "verify"]
