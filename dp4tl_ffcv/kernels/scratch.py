"""Sizes and places in scratch memory."""

from .compiled import compiled

ALIGNMENT = 64  # bytes in a cache line


@compiled()
def aligned(size: int, multiple: int = ALIGNMENT) -> int:
    """Round up to a multiple, by default to whole cache lines."""
    return (size + multiple - 1) // multiple * multiple
