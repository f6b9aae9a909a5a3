"""The HTML report of a run."""

from .page import ClassScores, ContactSheet
from .report import write_report

__all__ = ["ClassScores", "ContactSheet", "write_report"]
