"""Errors that a caller may want to tell apart, and how programs show errors to a person."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class BetonError(ValueError):
    """A file is not a beton that can be read: unfinished, truncated, foreign or inconsistent."""


class CheckpointError(ValueError):
    """A checkpoint does not fit the model that it is loaded into."""


class StaleArtifactError(ValueError):
    """Scores, features or a selection were made for another beton than the one at hand."""


@contextmanager
def one_line_errors(program: str, *, debug: bool | None = None) -> Iterator[None]:
    """Within the block, an error ends the program with one line on stderr and status 1.

    Ctrl-C ends it with status 130.

    Args:
        program: name that the line starts with.
        debug: print the traceback instead; None asks whether `DP4TL_DEBUG` is in the environment.
    """
    if debug is None:
        debug = "DP4TL_DEBUG" in os.environ
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{program}: stopped. Run it again to continue or start over.\n")
        sys.exit(130)
    except Exception as error:  # a person gets one line, whatever went wrong
        if debug:
            traceback.print_exc()
        else:
            sys.stderr.write(f"{program}: {_one_line(error)}\n")
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {str(error.filename)!r}. Check the path."
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {str(error.filename)!r}: {error.strerror}. Check the path."
    text = " ".join(" ".join((str(error), *getattr(error, "__notes__", ()))).split())
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"
