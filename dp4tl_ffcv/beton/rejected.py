"""Errors for files that are no intact betons."""

from pathlib import Path

from ..errors import BetonError
from .format import VERSION


def damaged(path: Path, found: str) -> BetonError:
    """Return the error of a beton whose tables contradict each other or the file."""
    return BetonError(f"{str(path)!r} is truncated or corrupt: {found}. Copy it or write it again.")


def foreign(path: Path, found: str) -> BetonError:
    """Return the error of a file of another format."""
    return BetonError(
        f"{str(path)!r} is not a beton in FFCV's format (version {VERSION}): {found}. "
        "Pass a file that ffcv or `dp4tl write` wrote. If a newer version wrote it, update "
        "dp4tl_ffcv."
    )
