"""Selections: which classes and samples are retained, and why."""

from .exports import export_indices, import_indices
from .rules import select
from .selection import Selection

__all__ = ["Selection", "export_indices", "import_indices", "select"]
