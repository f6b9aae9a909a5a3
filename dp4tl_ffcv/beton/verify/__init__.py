"""Verify a beton: find every fault of a file."""

from .allocations import Problem
from .verification import Verification, verify

__all__ = ["Problem", "Verification", "verify"]
