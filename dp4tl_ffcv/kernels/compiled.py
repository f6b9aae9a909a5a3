"""Compile functions once and keep the machine code on disk until its sources change."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

_RELATIVE_IMPORT = re.compile(r"^\s*from (\.+)([\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)
# Compiled code can call functions of these files only.
_MAKES_CODE = re.compile(r"\b(numba|compiled)\b")


def compiled(**options: Any) -> Callable[[_Function], _Function]:
    """Return a decorator: numba's `njit` with these options, without the GIL, cached on disk.

    Numba recompiles a function when its file changes. Machine code also contains constants and
    functions that the file imports, so here a change in one of the imported files counts as well.
    """

    def decorate(function: _Function) -> _Function:
        dispatcher: Any = njit(cache=True, nogil=True, **options)(function)
        # Numba has no public way to set the stamp. Without this attribute, its own rule applies.
        stored: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if hasattr(stored, "_source_stamp"):
            stored._source_stamp = source_stamp(Path(function.__code__.co_filename))
        return cast("_Function", dispatcher)

    return decorate


def compiled_intrinsic(make: Callable[..., Any]) -> Any:
    """Return numba's intrinsic of `make`. Numba's own types describe `make` instead."""
    return intrinsic(make)


@cache
def source_stamp(path: Path) -> str:
    """Return a hash of a file and of the files that its compiled code may come from."""
    found, pending = set(), [path]
    while pending:
        source = pending.pop()
        if source not in found:
            found.add(source)
            pending.extend(_imported(source))
    digest = hashlib.sha256()
    for source in sorted(found):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache
def _imported(path: Path) -> list[Path]:
    """List the files of this package from which a file imports constants or compiled code."""
    files: list[Path] = []
    for dots, module, imported in _RELATIVE_IMPORT.findall(path.read_text()):
        base = path.parents[len(dots) - 1].joinpath(*module.split("."))
        names = re.findall(r"\w+", imported)
        files.extend(base / f"{name}.py" for name in ("__init__", *names))
        home = base.with_suffix(".py")
        has_constant = any(name.isupper() for name in names)
        if home.is_file() and (has_constant or _MAKES_CODE.search(home.read_text())):
            files.append(home)
    return [file for file in files if file.is_file()]
