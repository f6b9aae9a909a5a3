"""The HTML report of a run."""

from .report import ClassScores, ContactSheet, write_report

__all__ = ["ClassScores", "ContactSheet", "write_report"]
