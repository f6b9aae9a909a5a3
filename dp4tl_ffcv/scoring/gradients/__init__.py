"""Norms of per-sample gradients (GraNd), without forming the gradients where that is cheaper."""

from .norms import gradient_norms, grand

__all__ = ["gradient_norms", "grand"]
