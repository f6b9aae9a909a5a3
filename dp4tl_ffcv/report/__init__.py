"""The HTML report of a finished demo."""

from .report import write_report

__all__ = ["write_report"]
