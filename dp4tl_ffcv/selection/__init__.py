"""Selections: the retained classes and samples of a beton."""

from .exports import export_indices, import_indices
from .rules import select
from .selection import Selection

__all__ = ["Selection", "export_indices", "import_indices", "select"]
