"""Per-sample gradient norms."""

from .norms import gradient_norms

__all__ = ["gradient_norms"]
