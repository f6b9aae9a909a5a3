"""Error types of the library, and how commands print an error."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from .text import printable


class BetonError(ValueError):
    """A file is not a readable beton: unfinished, truncated, inconsistent or of another format."""


class CheckpointError(ValueError):
    """A checkpoint does not fit the model that it is loaded into."""


class StaleArtifactError(ValueError):
    """Scores, features or a selection were made for another beton."""


@contextmanager
def requires(package: str, purpose: str) -> Iterator[None]:
    """Turn an ImportError in the block into a ValueError that names the optional `package`."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs {package}, which is not installed. Run `pip install {package}`."
        ) from error


@contextmanager
def one_line_errors(
    settings: Any = None, *, program: str | None = None, debug: bool | None = None
) -> Iterator[None]:
    """Print an exception of the block as one line on stderr and exit with status 1.

    Ctrl-C ends the program with status 130. Warnings in the block are one line each, too.

    Args:
        settings: the command's dataclass or its instance. If the error's message names a field as
            `batch_size`, the line names the flag --batch-size.
        program: name at the start of the line. None takes what the user typed.
        debug: print the traceback instead. None reads the environment variable `DP4TL_DEBUG`.
    """
    if debug is None:
        debug = "DP4TL_DEBUG" in os.environ
    formatted = warnings.formatwarning
    flags = _flags_of(settings)

    def as_line(message: Warning | str, *_: Any) -> str:
        line = _with_flags(str(message), flags)
        return f"{program or _typed_program()}: warning: {printable(line)}\n"

    try:
        if not debug:
            warnings.formatwarning = as_line  # type: ignore[assignment]  # called by position
        yield
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\n{program or _typed_program()}: stopped. Run it again to continue or start over.\n"
        )
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            line = _with_flags(_one_line(error), flags)
            sys.stderr.write(f"{program or _typed_program()}: {printable(line)}\n")
        sys.exit(1)
    finally:
        warnings.formatwarning = formatted


def _typed_program() -> str:
    name, spec = Path(sys.argv[0]).name, sys.modules["__main__"].__spec__
    if spec is None or not name.endswith(".py"):
        return name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _flags_of(settings: Any) -> set[str]:
    """Return the names of the fields that have a flag. Fields typed `Annotated` are positional."""
    if not is_dataclass(settings):
        return set()
    nested = (_flags_of(value) for value in vars(settings).values())
    own = {field.name for field in fields(settings) if not hasattr(field.type, "__metadata__")}
    return own.union(*nested)


def _with_flags(line: str, flags: set[str]) -> str:
    return re.sub(
        r"`(\w+)`", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in flags else m[0], line
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {str(error.filename)!r}. Check the path."
    notes = getattr(error, "__notes__", ())
    if isinstance(error, OSError) and error.filename is not None:
        return " ".join((f"cannot use {str(error.filename)!r}: {error.strerror}.", *notes))
    text = " ".join(" ".join((str(error), *notes)).split())
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"
