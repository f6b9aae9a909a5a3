"""Options that every verb has."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Output:
    """How results and errors are shown."""

    json: bool = False
    """Print the result as JSON."""
    debug: bool = False
    """Show the traceback of an error."""
