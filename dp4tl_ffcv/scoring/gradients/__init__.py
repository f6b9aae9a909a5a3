"""Norms of per-sample gradients."""

from .norms import gradient_norms

__all__ = ["gradient_norms"]
