"""The command line `dp4tl`: parse, call the library, print."""

from .main import main

__all__ = ["main"]
