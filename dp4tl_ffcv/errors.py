"""Error types of the library, and how commands print an error."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class BetonError(ValueError):
    """A file is not a readable beton: unfinished, truncated, inconsistent or of another format."""


class CheckpointError(ValueError):
    """A checkpoint does not fit the model that it is loaded into."""


class StaleArtifactError(ValueError):
    """Scores, features or a selection were made for another beton."""


@contextmanager
def one_line_errors(program: str, *, debug: bool | None = None) -> Iterator[None]:
    """Within the block, end the program with one line on stderr and status 1 on an error.

    Ctrl-C ends the program with status 130.

    Args:
        program: name at the start of the line.
        debug: print the traceback instead. None reads the environment variable `DP4TL_DEBUG`.
    """
    if debug is None:
        debug = "DP4TL_DEBUG" in os.environ
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{program}: stopped. Run it again to continue or start over.\n")
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            sys.stderr.write(f"{program}: {_one_line(error)}\n")
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {str(error.filename)!r}. Check the path."
    notes = getattr(error, "__notes__", ())
    if isinstance(error, OSError) and error.filename is not None:
        return " ".join((f"cannot use {str(error.filename)!r}: {error.strerror}.", *notes))
    text = " ".join(" ".join((str(error), *notes)).split())
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"
